"""HttpExecutor: the captions come from servers with OpenAI's API, such as vLLM's, llama.cpp's or `share4v serve`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from ..inference.caption_cache import CaptionCache, cache_name, caption_key
from ..options import CaptioningSettings, ExecutorOptions, ModelChoice
from ..prompts.steps import next_steps
from ..readers.read_pool import ReadPool
from ..rules.retries import Attempt, Caption, CaptionKey, accept, complete_record, next_attempt, of_text
from ..state.records import Record
from ..state.tasks import Task
from .http_endpoints import EndpointPool, EndpointsError, InputRejectedError, Spending
from .http_images import encode_task, probe_uri
from .http_requests import request_body

_DEFAULT_TOKENS = 256  # of a prompt without a style
_READ_AHEAD = 2  # inputs that are read before there is a request for them, per thread
_MAX_AHEAD = 4096  # inputs that may be started after the oldest one without a record


def import_httpx() -> None:
    """Import httpx.

    Raises:
        ImportError: it is not installed; the message tells how to install it.
    """
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the engine 'http' needs httpx, which is not installed: pip install 'mindone-share4v[http]'"
        ) from error


def read_key(variable: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the API key in an environment variable; None if no variable is named.

    Raises:
        ValueError: the variable is not set, or its value cannot be sent in a header.
    """
    if variable is None:
        return None
    key = environment.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_env (--api-key-env) names the environment variable {variable}, which is not set")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"the environment variable {variable} has characters that no API key has")
    return key


def base_address(url: str) -> str:
    """Return an endpoint's address without what may follow it: a slash, or the path of the chat completions.

    Raises:
        ValueError: it is not an http(s) URL with a host, or contains a password.

    Example:
        >>> base_address("http://localhost:8000/v1/chat/completions")
        'http://localhost:8000/v1'
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError(f"endpoint (--endpoint) must be a URL such as http://localhost:8000/v1, got {url!r}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "endpoint (--endpoint) must not contain a password or parameters: put the key into an environment variable "
            "and name that with api_key_env (--api-key-env)"
        )
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


class HttpExecutor:
    """Asks endpoints for captions; arguments as in `Executor`, `choice.model` is the name that endpoints know.

    Raises:
        ValueError: an address or the key is missing or malformed.
        ImportError: httpx is not installed.
    """

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        import_httpx()
        self._choice, self._settings, self._options = choice, settings, options
        self._urls = [base_address(url) for url in options.endpoints]
        self._key = read_key(options.api_key_env)
        self._cache = state / cache_name()

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield records in the order in which they are complete.

        Raises:
            EndpointsError: no endpoint is left; all records of answers that were received have been yielded.
        """
        remaining = iter(tasks)
        finished: SimpleQueue[tuple[int, Record | BaseException] | None] = SimpleQueue()
        started: dict[int, int] = {}  # number of the input -> how many were started before it
        count, is_exhausted = 0, False
        error: EndpointsError | None = None
        with _Session(self, lambda: finished.put(None)) as session:
            while True:
                while not is_exhausted and error is None and len(started) < session.capacity:
                    if started and count - next(iter(started.values())) >= _MAX_AHEAD:
                        break
                    task = next(remaining, None)
                    if task is None:
                        is_exhausted = True
                        break
                    started[task.item.number] = count
                    count += 1
                    session.submit(task, finished)
                if not started:
                    break
                found = finished.get()
                if found is None:  # an image is read, or waited for: there may be room for another one
                    continue
                number, result = found
                del started[number]
                if isinstance(result, Record):
                    yield result
                elif isinstance(result, EndpointsError):
                    error = result  # answers that are on their way are waited for
                else:
                    raise result
        if error is not None:
            raise error

    def make_run(self, readers: ReadPool) -> HttpRun:
        """Return what works on tasks; to be called in the event loop."""
        pool = EndpointPool(
            self._urls,
            self._key,
            self._options.max_in_flight,
            self._options.request_timeout,
            any(one.schema is not None for one in (self._settings, *(text.settings for text in self._settings.texts))),
        )
        cache = CaptionCache(self._cache, self._settings)
        return HttpRun(pool, readers, self._choice, self._settings, self._options, cache)


class _Session(AbstractContextManager["_Session"]):
    """An event loop in a thread of its own, since the caller's thread may have one already (in a notebook).

    Tasks are taken from the iterator in the caller's thread, which owns the files behind it.
    """

    def __init__(self, executor: HttpExecutor, on_change: Callable[[], None]) -> None:
        self._executor = executor
        self._readers = ReadPool(executor._settings.workers, "share4v-read", on_change)
        self._ahead = _READ_AHEAD * executor._settings.workers
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="share4v-http", daemon=True)

    def __enter__(self) -> _Session:
        self._thread.start()
        self._run = self._call(self._make_run())
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.close()
        self._call(self._run.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def capacity(self) -> int:
        """Number of inputs that may be in work now."""
        return self._run.pool.capacity + self._ahead + self._readers.waiting

    def submit(self, task: Task, finished: SimpleQueue[tuple[int, Record | BaseException] | None]) -> None:
        """Start a task; its record, or the error that ends the job, is put into `finished`."""

        async def work() -> None:
            try:
                finished.put((task.item.number, await self._run.record(task)))
            except Exception as error:
                finished.put((task.item.number, error))

        asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _make_run(self) -> HttpRun:
        run = self._executor.make_run(self._readers)
        run.start()
        return run


class HttpRun:
    """One stream of tasks on its way through the endpoints; used in the event loop only.

    Args:
        pool: the endpoints.
        readers: threads that read images.
        choice, settings, options: as in `Executor`.
        cache: captions of earlier runs; what is in it is not asked again.
    """

    def __init__(
        self,
        pool: EndpointPool,
        readers: ReadPool,
        choice: ModelChoice,
        settings: CaptioningSettings,
        options: ExecutorOptions,
        cache: CaptionCache,
    ) -> None:
        self.pool, self._readers, self._cache = pool, readers, cache
        self._model, self._settings, self._options = str(choice.model), settings, options
        self._pending: dict[CaptionKey, asyncio.Task[Caption]] = {}
        self._opening: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Ask each endpoint whether it can do what the job needs."""
        body = self._body(self._settings, None, "Describe this image", [probe_uri()], {"seed": 0})
        body["max_tokens"] = 1
        self._opening = [asyncio.ensure_future(self.pool.admit(one, body)) for one in self.pool.endpoints]

    async def close(self) -> None:
        """End all requests."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.pool.close()
        self._cache.close()

    async def record(self, task: Task) -> Record:
        """Return the record of a task.

        Raises:
            EndpointsError: no endpoint is left.
        """
        settings = self._settings
        arguments = self._options.image_size, settings.max_image_pixels, settings.downloads
        read, uris = await asyncio.wrap_future(self._readers.submit(encode_task, task, *arguments))
        recorded = {**settings.recorded, **self._options.request_fields}
        blank = replace(read, model=self._model, settings=recorded)
        if blank.error is not None:
            return blank
        started = time.perf_counter()
        results, prompts = await self._captions(task, blank.sha256, uris)
        blank = replace(blank, prompts=tuple(prompts))
        usage = _usage(task.item.key, results)
        rejected = None
        for result in results:
            if isinstance(result, InputRejectedError):
                rejected = rejected or str(result)
            elif isinstance(result, BaseException):
                raise result
        if rejected is not None:
            return replace(blank, error=rejected, usage=usage)
        captions = [result for result in results if isinstance(result, Caption)]
        return replace(
            complete_record(blank, captions),
            model=captions[0].source.get("model") or self._model,
            seconds=round(time.perf_counter() - started, 3) if usage else 0.0,
            usage=usage,
        )

    async def _captions(
        self, task: Task, sha256: str | None, uris: tuple[str, ...]
    ) -> tuple[list[Caption | BaseException], list[str]]:
        """Return the captions of an input, or why there is none, and the prompts, with earlier texts filled in."""
        count = len(task.prompts)
        prompts, results = list(task.prompts), list[Caption | BaseException | None]([None] * count)
        running = {
            asyncio.ensure_future(self._caption(task, sha256, uris, index, prompts[index])): index
            for index in range(count)
            if not task.needs_of(index)
        }
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                index = running.pop(one)
                error = one.exception()
                if error is not None:
                    results[index] = _named(error, task.text_of(index))
                    continue
                results[index] = one.result()
                answers = [result.text if isinstance(result, Caption) else None for result in results]
                try:
                    for place, prompt in next_steps(task, answers, index):
                        prompts[place] = prompt
                        running[asyncio.ensure_future(self._caption(task, sha256, uris, place, prompt))] = place
                except ValueError as error:  # an answer is empty, or contains what no prompt can
                    results[index] = InputRejectedError(of_text(task.text_of(index), str(error)))
        return [result for result in results if result is not None], prompts

    async def _caption(self, task: Task, sha256: str | None, uris: tuple[str, ...], index: int, prompt: str) -> Caption:
        """Return a caption: from the cache, from a request for an equal image that is in flight, or from a new one."""
        key = caption_key(task, sha256, index, prompt)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        if key not in self._pending:
            self._pending[key] = asyncio.ensure_future(self._generate(task, uris, index, prompt, key))
        return await self._pending[key]

    async def _generate(self, task: Task, uris: tuple[str, ...], index: int, prompt: str, key: CaptionKey) -> Caption:
        style, settings = task.styles[index], self._settings.of_text(task.text_of(index))
        shown = () if task.text_of(index) in self._settings.blind_texts else uris
        rules = settings.of_style(style)[1]
        attempts: list[Attempt] = self._cache.attempts(key, settings.seed, settings.attempts - 1)
        spending = Spending()
        for attempt in attempts:  # of a run that was killed, whose record does not exist
            spending.add_earlier(attempt.caption.source if attempt.caption is not None else {})
        caption = None
        try:
            while caption is None:
                attempts.append(next_attempt(attempts, settings.seed, key))
                body = self._body(settings, style, prompt, shown, attempts[-1].changes)
                before = replace(spending)
                answer = await self.pool.ask(body, spending)
                cost = {name: count - getattr(before, name) for name, count in vars(spending).items()}
                made = Caption(answer.text, answer.tokens, answer.finish_reason, source=cost)
                caption = accept(attempts, rules, settings.attempts, made, ())
                if caption is None:
                    self._cache.put_attempt(key, len(attempts), attempts[-1])
            source = {"model": answer.model, "payer": task.item.key, **vars(spending)}
            caption = replace(caption, source=source)
            self._cache.put(key, caption)
            return caption
        except InputRejectedError as error:
            error.source = {"payer": task.item.key, **vars(spending)}
            raise
        finally:
            del self._pending[key]

    def _body(
        self, settings: CaptioningSettings, style: str | None, prompt: str, uris: Any, changes: Mapping[str, Any]
    ) -> dict[str, Any]:
        generation = {"max_new_tokens": _DEFAULT_TOKENS, **settings.of_style(style)[0]}
        return request_body(self._model, prompt, uris, generation, changes, self._options.request_fields)


def _named(error: BaseException, text: str) -> BaseException:
    """Return the failure of a text with the text's name; several inputs may have the same error object."""
    if not isinstance(error, InputRejectedError) or not text:
        return error
    named = InputRejectedError(of_text(text, str(error)))
    named.source = error.source
    return named


def _usage(key: str, results: Iterable[Caption | BaseException]) -> dict[str, int]:
    """Return what an input's captions cost; a caption that several inputs got is counted for the one that asked."""
    usage: dict[str, int] = {}
    for result in results:
        source = getattr(result, "source", None) or {}
        if source.get("payer") == key:
            for name in ("requests", "prompt_tokens", "completion_tokens"):
                usage[name] = usage.get(name, 0) + int(source[name])
    return usage
