"""The route of an endpoint: from the body of a request to its answer, or to the error that it gets."""

from __future__ import annotations

import time
from typing import Any

from starlette.types import Receive, Scope, Send

from .admission import Places
from .endpoint import AnswerWriter, Endpoint
from .generation import Generation
from .http import ClientLeftError, read_body, send_json, send_stream, unless_left, watched
from .json_text import loads
from .service import Service


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
        began = time.perf_counter()
        endpoint = self._service.endpoint(self._name)
        with self._service.admission.places() as places:
            body = await read_body(scope, receive, self._service.options.limits)
            async with watched(receive) as left:
                try:
                    job = await unless_left(self._job(endpoint, body, places, scope["state"]), left)
                    generation = self._service.generate(job, began)
                    try:
                        await self._answer(endpoint, job, generation, scope["state"], left, send)
                    finally:
                        generation.cancel()
                        self._service.count(generation)
                except ClientLeftError:
                    scope["state"]["client_left"] = True
                    self._service.metrics.cancelled()

    async def _job(self, endpoint: Endpoint, body: bytes, places: Places, state: dict[str, Any]) -> Any:
        """Read the request and prepare its prompts."""
        service = self._service
        values = endpoint.values(await service.in_thread(loads, body))
        service.check_model(values)
        state["client_request_id"] = values.get("request_id")
        places.take(endpoint.answers(values))
        if service.options.log_content:
            state["request"] = {name: value for name, value in values.items() if name not in ("images",)}
        return await service.in_thread(endpoint.build, values)

    async def _answer(
        self, endpoint: Endpoint, job: Any, generation: Generation, state: dict[str, Any], left: Any, send: Send
    ) -> None:
        writer = endpoint.writer(job, generation)
        headers = {"X-Request-Id": state["request_id"]}
        try:
            if job.stream:
                await unless_left(self._stream(endpoint, writer, headers, state, send), left)
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

    async def _stream(
        self, endpoint: Endpoint, writer: AnswerWriter, headers: dict[str, str], state: dict[str, Any], send: Send
    ) -> None:
        state["stream"] = True
        await send_stream(
            send, writer.stream(), endpoint.stream_type, headers, self._service.options.limits.write_seconds
        )
