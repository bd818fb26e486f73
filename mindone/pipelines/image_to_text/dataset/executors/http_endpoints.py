"""Endpoints with OpenAI's API: which of them gets a request, what its response means, and when to stop asking."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mindone.models.share4v.display import printable, redacted

from ...retry_after import retry_after
from ..state.records import JobError
from .http_limits import RequestLimit
from .http_requests import (
    Answer,
    AnswerError,
    NoTextError,
    RefusedError,
    error_code,
    error_message,
    read_answer,
    read_usage,
)

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 8 * 2**20
BACKOFF_SECONDS = 1.0  # before the second attempt at a request; each further one doubles it
PATIENCE_SECONDS = 600.0  # an endpoint that answers nothing for so long is not asked again in this run
MAX_TRIES = 5  # of a request that fails by itself: a broken connection, an error of the server, an unusable answer
MAX_REFUSALS = 50  # of one request by endpoints that have too many
_CUT = "output limit was reached"  # in OpenAI's error if an answer ends before its text begins
_MODELS_SHOWN = 10
_SHOWN_KEY = 3  # first letters of a key, such as "sk-", that say nothing


class Meaning(Enum):
    """What a status says about the request and the endpoint."""

    BUSY = auto()  # the endpoint has too many requests: later again
    FAILED = auto()  # this request failed, perhaps by chance: again
    REJECTED = auto()  # this request will never succeed
    UNUSABLE = auto()  # no request to this endpoint will succeed


# The statuses that do not mean REJECTED (4xx) or FAILED (5xx); a redirect is never followed, so that neither key nor
# image goes to an address that the user did not name.
_MEANINGS = {
    **dict.fromkeys((408, 409, 425, 429, 503, 529), Meaning.BUSY),
    **dict.fromkeys((401, 402, 403, 404, 405, 407, 410), Meaning.UNUSABLE),
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308), Meaning.UNUSABLE),
}
_HINTS = {
    401: "the key is wrong or missing: set the variable that api_key_env (--api-key-env) names",
    402: "the account has no credit left",
    403: "the key may not use this model",
    404: "the address or the model's name is wrong",
    405: "the address is not that of an OpenAI-compatible API, which usually ends in /v1",
}
_GATEWAY = (502, 504)  # what a proxy answers while the server behind it starts
_NO_CREDIT = "insufficient_quota"  # OpenAI's code, with status 429; it does not pass by waiting


class InputRejectedError(Exception):
    """No endpoint will caption this input; the message is the reason.

    Attributes:
        source: as of a Caption: what the requests cost.
    """

    source: Mapping[str, Any] = MappingProxyType({})


class EndpointsError(JobError):
    """No endpoint is left; the same job can be run again."""


@dataclass
class Spending:
    """What the requests for one caption cost.

    Attributes:
        requests: number of requests that were sent.
        prompt_tokens, completion_tokens: as the endpoints counted them, of failed attempts too.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add_earlier(self, source: Mapping[str, Any]) -> None:
        """Count what an attempt of an earlier run cost, as it was stored; earlier versions stored nothing."""
        self.requests += int(source.get("requests", 0))
        self.prompt_tokens += int(source.get("prompt_tokens", 0))
        self.completion_tokens += int(source.get("completion_tokens", 0))

    def add(self, data: bytes) -> None:
        """Count the tokens that a response states."""
        prompt, completion = read_usage(data)
        self.prompt_tokens += prompt
        self.completion_tokens += completion


@dataclass(frozen=True)
class Response:
    """A response: its status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Endpoint:
    """One endpoint.

    Args:
        url: base address, such as "http://host:8000/v1".
        client: sends the requests.
        limit: of the requests in flight.

    Attributes:
        is_open: whether it has accepted a request like those of the job.
        error: why it is not asked any more, or None.
        silent_since: time since which it has answered nothing but that it is busy; None after an answer.
        token_field: name of the field that limits the length of an answer.
    """

    def __init__(self, url: str, client: httpx.AsyncClient, limit: RequestLimit) -> None:
        self.url, self.limit = url, limit
        self.name = redacted(url)
        self._client = client
        self.is_open = False
        self.error: str | None = None
        self.silent_since: float | None = None
        self.token_field = "max_tokens"

    async def post(self, body: Mapping[str, Any], seconds: float) -> Response:
        """Send a request for a chat completion.

        Raises:
            TimeoutError: it took longer than `seconds`.
            httpx.HTTPError: it could not be sent, or the connection was lost.
            AnswerError: the response is too large.
        """
        sent = dict(body)
        if self.token_field != "max_tokens" and "max_tokens" in sent:
            sent[self.token_field] = sent.pop("max_tokens")
        return await _within(seconds, self._send("POST", "/chat/completions", json.dumps(sent).encode()))

    async def models(self) -> list[str]:
        """Return the names of the endpoint's models; empty if it does not tell."""
        import httpx

        try:
            found = json.loads((await _within(CONNECT_SECONDS, self._send("GET", "/models"))).body)["data"]
            return [str(model["id"]) for model in found]
        except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError, RecursionError):
            return []

    async def _send(self, method: str, path: str, content: bytes | None = None) -> Response:
        headers = {"Content-Type": "application/json"} if content else {}
        async with self._client.stream(method, self.url + path, content=content, headers=headers) as response:
            data = bytearray()
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise AnswerError(f"it has more than {MAX_ANSWER_BYTES:,} bytes")
            return Response(response.status_code, response.headers, bytes(data))


class EndpointPool:
    """Asks endpoints, as many questions at a time as they can answer.

    Must be used in one event loop.

    Args:
        urls: base addresses.
        key: API key, or None.
        max_in_flight: maximum number of requests in flight at each endpoint.
        seconds: maximum duration of a request.
        is_json: whether answers to requests with a `response_format` must be JSON.
    """

    def __init__(
        self, urls: Sequence[str], key: str | None, max_in_flight: int, seconds: float, is_json: bool = False
    ) -> None:
        self._key, self._seconds, self._is_json = key, seconds, is_json
        self._clients = [_client(url, key) for url in urls]
        self.endpoints = [
            Endpoint(url, client, RequestLimit(max_in_flight, BACKOFF_SECONDS))
            for url, client in zip(urls, self._clients, strict=True)
        ]
        self._turn = asyncio.Lock()  # requests start in the order in which they were asked for
        self._changed = asyncio.Event()

    @property
    def capacity(self) -> int:
        """Number of requests that may be in flight now at all endpoints that are asked."""
        return sum(one.limit.value for one in self.endpoints if one.error is None)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()

    async def admit(self, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        """Ask an endpoint a small question with the job's settings; one that cannot answer it is not asked again.

        An endpoint that is busy, such as a server that is loading its model, is asked again until it answers.
        """
        import httpx

        while endpoint.error is None and not endpoint.is_open:
            await asyncio.sleep(endpoint.limit.wait() or 0.0)
            started = endpoint.limit.start()
            try:
                response = await endpoint.post(body, self._seconds)
                await self._judge_admission(endpoint, response, started)
            except (httpx.HTTPError, httpx.InvalidURL, AnswerError) as error:
                self._disable(endpoint, f"it cannot be used: {self._safe(str(error)) or type(error).__name__}")
            except TimeoutError:
                self._refuse(endpoint, started, None, f"no answer within {self._seconds:g} s")
            except Exception as error:  # whatever it is, the inputs must not wait for this endpoint for ever
                self._disable(endpoint, self._safe(f"it cannot be used: {type(error).__name__}: {error}"))
            finally:
                endpoint.limit.end()
        self._notify()

    async def _judge_admission(self, endpoint: Endpoint, response: Response, started: float) -> None:
        said = self._safe(error_message(response.body))
        if response.status == 200:
            with suppress(RefusedError, NoTextError):  # of a grey image, or of one token: the next answer may have text
                read_answer(response.body)
            endpoint.is_open, endpoint.silent_since = True, None
        elif response.status == 400 and _CUT in said:  # a model of OpenAI that reasons: one token is no text
            endpoint.is_open, endpoint.silent_since = True, None
        elif response.status == 400 and "max_completion_tokens" in said and endpoint.token_field == "max_tokens":
            endpoint.token_field = "max_completion_tokens"  # the newer name, which some models of OpenAI insist on
        elif _meaning(response) is Meaning.BUSY or response.status in _GATEWAY:
            self._refuse(endpoint, started, retry_after(response.headers), f"{response.status}: {said}")
        elif response.status == 404 and (names := await endpoint.models()):
            listed = ", ".join(names[:_MODELS_SHOWN])
            self._disable(endpoint, f"it answered 404: {said}; its models: {self._safe(listed)} (set model, --model)")
        elif _meaning(response) is Meaning.UNUSABLE:
            self._disable(endpoint, self._unusable(response))
        else:
            self._disable(
                endpoint, f"it cannot answer a question about an image with these settings: {response.status}: {said}"
            )

    async def ask(self, body: Mapping[str, Any], spending: Spending) -> Answer:
        """Return the answer to a request, from whichever endpoint is free.

        Args:
            body: of the request.
            spending: counts what it costs.

        Raises:
            InputRejectedError: the request itself is at fault, or failed too often.
            EndpointsError: no endpoint is left.
        """
        tries = refusals = 0
        while True:
            endpoint, started = await self._acquire()
            spending.requests += 1
            try:
                outcome = await self._try(endpoint, started, body, spending)
            finally:
                endpoint.limit.end()
                self._notify()
            if isinstance(outcome, Answer):
                return outcome
            meaning, reason = outcome
            if meaning is Meaning.REJECTED:
                raise InputRejectedError(reason)
            tries += meaning is Meaning.FAILED
            refusals += meaning is Meaning.BUSY
            if tries >= MAX_TRIES or refusals >= MAX_REFUSALS:
                raise InputRejectedError(f"after {tries + refusals} requests: {reason}")
            if meaning is Meaning.FAILED:
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (tries - 1) * (0.5 + random.random() / 2))

    async def _try(
        self, endpoint: Endpoint, started: float, body: Mapping[str, Any], spending: Spending
    ) -> Answer | tuple[Meaning, str]:
        """Send a request once; return the answer, or what went wrong."""
        import httpx

        try:
            response = await endpoint.post(body, self._seconds)
        except TimeoutError:
            self._refuse(endpoint, started, None, f"no answer within {self._seconds:g} s")
            return Meaning.FAILED, f"{endpoint.name} did not answer within {self._seconds:g} s"
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = f"no connection: {self._safe(str(error))}"
            self._refuse(endpoint, started, None, reason)
            return Meaning.BUSY, f"{endpoint.name}: {reason}"
        except (httpx.HTTPError, AnswerError) as error:
            return Meaning.FAILED, f"{endpoint.name}: {self._safe(str(error)) or type(error).__name__}"
        if response.status == 200:
            spending.add(response.body)
            return self._read(endpoint, started, response, self._is_json and "response_format" in body)
        meaning, said = _meaning(response), self._safe(error_message(response.body))
        reason = f"{endpoint.name} answered {response.status}: {said}"
        if meaning is Meaning.BUSY:
            self._refuse(endpoint, started, retry_after(response.headers), f"{response.status}: {said}")
        elif meaning is Meaning.UNUSABLE:
            self._disable(endpoint, self._unusable(response))
            meaning = Meaning.BUSY  # for this request: another endpoint may answer it
        return meaning, reason

    def _read(
        self, endpoint: Endpoint, started: float, response: Response, is_json: bool
    ) -> Answer | tuple[Meaning, str]:
        endpoint.silent_since = None
        endpoint.limit.answered(started)
        try:
            return read_answer(response.body, is_json)
        except RefusedError as error:
            return Meaning.REJECTED, self._safe(str(error))
        except AnswerError as error:
            return Meaning.FAILED, f"the answer of {endpoint.name} cannot be used: {self._safe(str(error))}"

    async def _acquire(self) -> tuple[Endpoint, float]:
        """Wait until an endpoint is free, and count a request that starts there."""
        async with self._turn:
            while True:
                usable = [one for one in self.endpoints if one.error is None]
                if not usable:
                    raise EndpointsError(self.explain())
                waits = {one: one.limit.wait() for one in usable if one.is_open}
                free = [one for one, wait in waits.items() if wait == 0]
                if free:
                    chosen = min(free, key=lambda one: one.limit.in_flight / one.limit.value)
                    return chosen, chosen.limit.start()
                self._changed.clear()
                soonest = min((wait for wait in waits.values() if wait is not None), default=None)
                try:
                    await asyncio.wait_for(self._changed.wait(), soonest)
                except (TimeoutError, asyncio.TimeoutError):
                    continue

    def explain(self) -> str:
        """Return why no endpoint is left."""
        reasons = "; ".join(f"{one.name}: {one.error}" for one in self.endpoints)
        return f"no endpoint can be asked ({reasons}); what was answered is kept: run the job again to resume it"

    def _refuse(self, endpoint: Endpoint, started: float, seconds: float | None, reason: str) -> None:
        """Slow an endpoint down; give it up if it has not answered for long, or asks to wait too long."""
        endpoint.limit.refused(started, seconds)
        now = time.monotonic()
        if endpoint.silent_since is None:
            endpoint.silent_since = now
        silent = now - endpoint.silent_since
        if (seconds or 0) > PATIENCE_SECONDS:
            self._disable(endpoint, f"it asks to wait {seconds:.0f} s ({reason})")
        elif silent > PATIENCE_SECONDS:
            self._disable(endpoint, f"it has answered nothing for {silent:.0f} s ({reason})")

    def _disable(self, endpoint: Endpoint, reason: str) -> None:
        if endpoint.error is None:
            endpoint.error = reason
            if any(one.error is None for one in self.endpoints):  # else the job stops with the reasons
                _log.warning("%s is not asked any more: %s", endpoint.name, reason)
        self._notify()

    def _unusable(self, response: Response) -> str:
        said = self._safe(error_message(response.body))
        if 300 <= response.status < 400:
            target = redacted(str(response.headers.get("location", "")))
            return f"it redirects to {target or 'nowhere'}, which is not followed: pass that endpoint instead"
        hint = _HINTS.get(response.status)
        return f"it answered {response.status}: {said}" + (f"; {hint}" if hint else "")

    def _notify(self) -> None:
        self._changed.set()

    def _safe(self, text: str) -> str:
        """Return a message without the key and without secrets of URLs."""
        if self._key:
            text = _without_key(text, self._key)
        return printable(redacted(" ".join(text.split())), keep="")


def _without_key(text: str, key: str) -> str:
    """Return a message without the key, and without its beginning where the message was cut inside it."""
    text = text.replace(key, "***")
    for length in range(len(key) - 1, _SHOWN_KEY, -1):
        for end in ("", "'", '"'):  # what `repr` adds
            if text.endswith(key[:length] + end):
                return text[: len(text) - length - len(end)] + "***" + end
    return text


def _meaning(response: Response) -> Meaning:
    if response.status == 429 and error_code(response.body) == _NO_CREDIT:
        return Meaning.UNUSABLE
    usual = Meaning.FAILED if response.status >= 500 or response.status < 400 else Meaning.REJECTED
    return _MEANINGS.get(response.status, usual)


async def _within(seconds: float, sending: Any) -> Response:
    try:
        response: Response = await asyncio.wait_for(sending, seconds)
    except asyncio.TimeoutError as error:  # another class than TimeoutError in Python 3.10
        raise TimeoutError from error
    return response


def _client(url: str, key: str | None) -> httpx.AsyncClient:
    """Return a client that sends the key to this address only: it follows no redirects."""
    import httpx

    headers = {"User-Agent": "mindone-share4v", "Accept": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    parts = urlsplit(url)
    is_local = _is_local(parts.hostname or "")
    return httpx.AsyncClient(
        headers=headers,
        verify=not is_local or parts.scheme == "https",  # False where there is no TLS: certificates load slowly
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        follow_redirects=False,
        trust_env=not is_local,  # a proxy is of no use on this machine
    )


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
