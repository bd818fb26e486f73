"""The route of an endpoint: from the body of a request to its answer, or to the error that it gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from .admission import Reservation
from .chat import Prompt
from .endpoint import Endpoint
from .generation import Generation, request_timeout
from .http import ClientLeftError, read_body, send_json, send_stream, unless_left, watched
from .options import Limits
from .service import Service

Result = TypeVar("Result")
_CONTENT = ("messages", "prompt", "system", "images")  # fields that become the prompt
_LAST_EVENT_SECONDS = 5.0


def remaining(limits: Limits, began: float) -> float:
    """Return the seconds that a request may still take."""
    return max(limits.request_seconds - (time.perf_counter() - began), 0.0)


async def in_time(work: Awaitable[Result], limits: Limits, began: float) -> Result:
    """Return the result of `work`, if it comes before the request's time is over.

    Raises:
        ApiError: (504) it did not.
    """
    try:
        return await asyncio.wait_for(work, remaining(limits, began))
    except asyncio.TimeoutError:
        raise request_timeout(limits) from None


class GenerationRoute:
    """An ASGI application for one endpoint.

    Args:
        service: what generates.
        name: of the endpoint.
    """

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; errors before the first byte of the answer are left to the middleware.

        Raises:
            ApiError: the request is refused, or failed.
        """
        began, limits = time.perf_counter(), self._service.options.limits
        endpoint = self._service.endpoint(self._name)
        with self._service.admission.reserve() as reservation:
            body = await self._service.arrived(read_body(scope, receive, limits))
            async with watched(receive) as left:
                try:
                    preparation = unless_left(self._job(endpoint, body, reservation, scope["state"]), left)
                    del body  # what is prepared is all that remains in memory
                    job = await in_time(preparation, limits, began)
                    generation = self._service.generate(job, began)
                    try:
                        await self._answer(endpoint, job, generation, scope["state"], left, send, began)
                    finally:
                        generation.cancel()
                        self._service.count(generation)
                except ClientLeftError:
                    scope["state"]["client_left"] = True
                    self._service.metrics.cancelled()

    async def _job(self, endpoint: Endpoint, body: bytes, reservation: Reservation, state: dict[str, Any]) -> Any:
        """Read the request and prepare its prompts."""
        service = self._service
        values, has_urls = await service.read(body, endpoint.values)
        del body
        state["client_request_id"] = values.get("request_id")
        reservation.extend(endpoint.answers(values))
        await service.compile(*await service.prepare(endpoint.shape, values, False))
        job = await service.prepare(endpoint.build, values, has_urls)
        if service.options.log_content:
            settings = {name: value for name, value in values.items() if name not in _CONTENT}
            prompts = {id(prompt): prompt for prompt, _ in job.prompts}.values()
            state["request"] = {**settings, "prompts": [self._logged(prompt) for prompt in prompts]}
        return job

    def _logged(self, prompt: Prompt) -> Any:
        """Return a prompt for the log: messages with the number of their images, or the text."""
        if prompt.turns:
            return list(prompt.turns)
        builder = self._service.builder
        return builder.decode(prompt.input_ids[0].tolist()) if builder is not None else None

    async def _answer(
        self,
        endpoint: Endpoint,
        job: Any,
        generation: Generation,
        state: dict[str, Any],
        left: Any,
        send: Send,
        began: float,
    ) -> None:
        writer = endpoint.writer(job, generation)
        headers = {"X-Request-Id": state["request_id"]}
        try:
            if job.stream:
                state["stream"] = True
                # The generation reports the time-out as the last event, for which the client has a few seconds more.
                seconds = remaining(self._service.options.limits, began) + _LAST_EVENT_SECONDS
                stream = send_stream(send, writer.stream(), endpoint.stream_type, headers, seconds)
                await unless_left(stream, left)
            else:
                await unless_left(generation.complete(), left)
                await send_json(send, 200, writer.complete(), headers)
        finally:
            state["prompt_tokens"] = sum(
                prompt.tokens for prompt in {id(one): one for one in generation.prompts}.values()
            )
            state["completion_tokens"] = sum(len(one.token_ids) for one in generation.completions.values())
            if self._service.options.log_content:
                state["answers"] = [one.text for one in generation.completions.values()]
