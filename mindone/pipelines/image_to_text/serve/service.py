"""The service behind the routes: model, admission, metrics, and the endpoints once the model is loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from mindone.models.share4v.generation.grammar_trial import Trial

from .admission import Admission
from .anthropic_api import MessagesReader, MessageWriter
from .cancellation import Cancellation
from .chat import PromptBuilder
from .endpoint import Endpoint
from .errors import ApiError, invalid, restarting, shutting_down
from .generation import FINISH_REASONS, Generation
from .images import ImageReader, names_url
from .json_text import loads
from .metrics import Metrics
from .model_thread import ModelThread
from .ollama_api import OllamaReader, OllamaWriter
from .openai_requests import OpenAIReader
from .openai_responses import Writer
from .options import ServerOptions
from .remote_images import ImageDownloader
from .structured_output import Shape, anthropic_shape, compile_shape, ollama_shape, openai_shape

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.base import Pipeline

Result = TypeVar("Result")
# Threads of a kind; a download may wait for another server, and must not keep the others from being read or prepared.
_READING = 2
_PREPARING = 4
_DOWNLOADING = 4
_COMPILING = 2  # schemas, which can take as long as the limit allows
Values = dict[str, Any]
_SCHEMA_TURNS = 3  # a request waits until its schema is compiled this many times the limit of one compilation
_PREFIX = "vllm:prefix_cache"


class Service:
    """Everything that routes need; used by the event loop's thread.

    Args:
        options: of the server.
        load: returns the pipeline; called in the model's thread. None: there is no model.
        image_cache_bytes: maximum size of the cached image features.
        on_ready: called in the model's thread when requests can be answered.
        on_failure: called in the model's thread with the error that ends it.

    Attributes:
        model: the thread that owns the model.
        admission: what decides whether a request is accepted.
        metrics: of the server.
        builder: of prompts; None until the model is loaded.
        messages: reader of Anthropic's requests; None until the model is loaded.
    """

    def __init__(
        self,
        options: ServerOptions,
        load: Callable[[], Pipeline] | None,
        image_cache_bytes: int = 2**28,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        limits = options.limits
        self.options = options
        self._image_cache_bytes = image_cache_bytes
        self._downloader = ImageDownloader(options.allow_url_hosts, limits) if options.allow_url_hosts else None
        self.model = ModelThread(load, options.max_batch, self._prepare, on_ready, on_failure)
        self.admission = Admission(options.max_batch, limits.queue, limits.queue_seconds)
        self.metrics = Metrics(options.model_name, self._gauges)
        self.builder: PromptBuilder | None = None
        self.messages: MessagesReader | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._readers = ThreadPoolExecutor(_READING, thread_name_prefix="share4v-read")
        self._preparers = ThreadPoolExecutor(_PREPARING, thread_name_prefix="share4v-prepare")
        self._compilers = ThreadPoolExecutor(_COMPILING, thread_name_prefix="share4v-compile")
        self._downloaders = ThreadPoolExecutor(_DOWNLOADING, thread_name_prefix="share4v-download")
        self._work: set[asyncio.Future[Any]] = set()  # what requests wait for in these threads
        self._is_ending = False
        self.created = int(time.time())

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint "chat", "completions", "messages", "ollama_chat" or "ollama_generate".

        Raises:
            ApiError: 503 if the model is not loaded.
        """
        self.check_ready()
        return self._endpoints[name]

    def check_ready(self) -> PromptBuilder:
        """Return the builder of prompts.

        Raises:
            ApiError: 503 if the model is not loaded, or failed.
        """
        if self.admission.is_draining:
            raise shutting_down()
        if self.model.status == "absent":
            raise ApiError(503, "this server has no model: start it with a model (--model)", code="no_model")
        if self.model.status == "loading":
            raise ApiError(503, "the model is being loaded: try again in a few seconds", code="loading", retry_after=5)
        if self.model.status != "ready" or self.builder is None:
            raise ApiError(503, "the model failed; the server's log says why", code="failed")
        return self.builder

    def check_model(self, values: Mapping[str, Any]) -> None:
        """Check that a request names this server's model.

        Raises:
            ApiError: 404 for another model.
        """
        name, known = values.get("model", self.options.model_name), self.options.model_name
        if name not in (known, f"{known}:latest"):
            message = f"the model {name[:100]!r} does not exist here: use {known!r}, or leave model out"
            raise ApiError(404, message, "model", "model_not_found")

    async def compute(
        self, body: bytes, check: Callable[[Values], Values], function: Callable[[Values], Result]
    ) -> Result:
        """Read a body and return what `function` makes of its fields, as `read` and `prepare` do."""
        values, has_urls = await self.read(body, check)
        del body  # while `function` waits for a thread, there is one copy of the request in memory
        return await self.prepare(function, values, has_urls)

    async def arrived(self, body: Coroutine[Any, Any, bytes]) -> bytes:
        """Return a body that a client sends, at its own pace.

        Raises:
            ApiError: (503) the server is shutting down.
        """
        return await self._result(self._noted(asyncio.ensure_future(body)))

    async def read(self, body: bytes, check: Callable[[Values], Values]) -> tuple[Values, bool]:
        """Return the fields of a body, and whether it names images by URL; few are read at once, the others wait.

        Args:
            body: JSON.
            check: returns the fields, or raises ApiError.

        Raises:
            ApiError: (400) the body is no JSON, or `check` raised; (413) it has too many values; (404) it names another
                model.
        """

        def fields() -> tuple[Values, bool]:
            values = check(loads(body, self.options.limits.body_values))
            self.check_model(values)
            return values, self._downloader is not None and names_url(values)

        return await self._result(self._submit(self._readers, fields))

    async def compile(self, shape: Shape, param: str) -> None:
        """Compile a schema or regular expression, if there is one, in threads that nothing else waits for.

        Raises:
            ApiError: (400) it is invalid, not supported, or takes too long; (429) others took too long.
        """
        pipeline, seconds = self.model.pipeline, self.options.limits.schema_seconds
        if not shape or pipeline is None:
            return
        loop, trial = asyncio.get_running_loop(), Trial()
        has_begun = loop.create_future()
        waiting = [shape]  # what is cancelled stays in the executor's queue until its turn: it must not hold the schema

        def compiled() -> None:
            loop.call_soon_threadsafe(has_begun.set_result, None)
            compile_shape(pipeline, waiting.pop(), param, seconds, trial)

        work = self._submit(self._compilers, compiled)
        try:
            turns = _SCHEMA_TURNS * seconds
            await asyncio.wait({work, has_begun}, timeout=turns, return_when=asyncio.FIRST_COMPLETED)
            if not (work.done() or has_begun.done()):
                message = f"{param} waited for the schemas of other requests: try again later"
                raise ApiError(429, message, param, "queue_timeout", round(seconds) + 1)
            await self._result(work)
        finally:  # also of a client that left: nobody else may wait for its schema
            work.cancel()
            waiting.clear()
            trial.end()

    async def prepare(self, function: Callable[[Values], Result], values: Values, has_urls: bool) -> Result:
        """Return what `function` makes of these fields in a thread; few run at once, the others wait."""
        pool = self._downloaders if has_urls else self._preparers
        cancellation = Cancellation()
        try:
            return await self._result(self._submit(pool, cancellation.run, function, values))
        finally:  # also of a client that left: its downloads must not keep others from theirs
            cancellation.cancel()

    def _submit(
        self, pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any
    ) -> asyncio.Future[Result]:
        """Let a thread of a pool call a function.

        Raises:
            ApiError: (503) the server is shutting down.
        """
        if self._is_ending:
            raise shutting_down()
        return self._noted(asyncio.get_running_loop().run_in_executor(pool, function, *arguments))

    def _noted(self, work: asyncio.Future[Result]) -> asyncio.Future[Result]:
        """Let `end` cancel what a request waits for."""
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        return work

    async def _result(self, work: asyncio.Future[Result]) -> Result:
        """Return the result of what `end` may cancel.

        Raises:
            ApiError: (503) the server is shutting down.
        """
        try:
            # Not `await work`, which would not tell whether this request is cancelled or what it waits for.
            await asyncio.wait({work})
        finally:
            work.cancel()
        if work.cancelled():  # by `end`
            raise shutting_down()
        return work.result()

    def generate(self, job: Any, began: float) -> Generation:
        """Submit a request's prompts to the engine.

        Raises:
            ApiError: 503 if the server is shutting down or the engine is closed, 400 if logit_bias has an id that the
                vocabulary does not have.
        """
        if self._is_ending:
            raise shutting_down()
        engine = self.model.engine
        if engine is None or self.builder is None:
            raise restarting()
        for _, settings in job.prompts:
            try:
                settings.check_vocabulary(self.builder.vocabulary)
            except ValueError as error:
                raise invalid(str(error), "logit_bias") from error
        return Generation(engine, job.prompts, self.options.limits, job.stream, began)

    def count(self, generation: Generation) -> None:
        """Count the answers of a request that has ended."""
        for completion in generation.completions.values():
            reason = FINISH_REASONS.get(completion.finish_reason)
            if reason is None:
                continue
            self.metrics.completed(completion, generation.submitted, reason)
            if completion.started is not None and completion.ended is not None:
                self.admission.finished(completion.ended - completion.started)

    def drain(self) -> None:
        """Accept no more requests."""
        self.admission.is_draining = True

    def end(self) -> None:
        """End all requests with 503, whether their bodies arrive, they wait for a thread, run in one, or in the model.

        Only for the event loop's thread, in which their tasks are: none of them is between two steps meanwhile.
        """
        self._is_ending = True
        for work in list(self._work):
            work.cancel()  # its request ends in `_result`, and ends its compilation or download itself
        for pool in (self._readers, self._preparers, self._downloaders, self._compilers):
            pool.shutdown(wait=False, cancel_futures=True)
        self.model.cancel_all()

    def close(self, timeout: float) -> bool:
        """End the model's thread; return whether it ended in time. Any thread may call it, after `end`."""
        return self.model.close(timeout)

    # In the model's thread

    def _prepare(self) -> None:
        """Make the endpoints, once the model is loaded."""
        pipeline = self.model.pipeline
        if pipeline is None:
            raise RuntimeError("the model is not loaded")
        limits, name = self.options.limits, self.options.model_name
        pipeline.model.image_cache.max_bytes = self._image_cache_bytes
        builder = PromptBuilder(pipeline, ImageReader(limits, self._downloader), limits)
        tokenizer, ping = pipeline.processor.tokenizer, limits.ping_seconds
        openai, messages, ollama = (
            OpenAIReader(builder, limits),
            MessagesReader(builder, limits),
            OllamaReader(builder, limits),
        )

        def openai_writer(is_chat: bool) -> Callable[[Any, Generation], Writer]:
            return lambda job, generation: Writer(job, generation, name, tokenizer, is_chat, ping)

        def ollama_writer(is_chat: bool) -> Callable[[Any, Generation], OllamaWriter]:
            return lambda job, generation: OllamaWriter(job, generation, name, is_chat)

        def message_writer(job: Any, generation: Generation) -> MessageWriter:
            return MessageWriter(job, generation, name, ping)

        lines = "application/x-ndjson"
        self._endpoints = {
            "chat": Endpoint(openai.chat_values, openai.answers, _openai_shape, openai.chat, openai_writer(True)),
            "completions": Endpoint(
                openai.completion_values, openai.answers, _openai_shape, openai.completion, openai_writer(False)
            ),
            "messages": Endpoint(messages.values, _one, _anthropic_shape, messages.message, message_writer),
            "ollama_chat": Endpoint(ollama.chat_values, _one, _ollama_shape, ollama.chat, ollama_writer(True), lines),
            "ollama_generate": Endpoint(
                ollama.generate_values, _one, _ollama_shape, ollama.generate, ollama_writer(False), lines
            ),
        }
        self.messages = messages
        self.builder = builder

    # When metrics are asked for

    def _gauges(self) -> dict[str, tuple[str, float, bool]]:
        engine, pipeline = self.model.engine, self.model.pipeline
        waiting = engine.waiting if engine is not None else 0
        running = len(engine) - waiting if engine is not None else 0
        queried, hits = engine.prefix_tokens if engine is not None else (0, 0)
        image_hits = image_misses = 0
        if pipeline is not None:
            cache = pipeline.model.image_cache
            image_hits, image_misses = cache.hits, cache.misses
        return {
            "vllm:num_requests_running": ("Sequences that have a slot", running, False),
            "vllm:num_requests_waiting": ("Sequences that wait for a slot", waiting, False),
            f"{_PREFIX}_queries": ("Tokens of prompts that were looked up in the prefix cache", queried, True),
            f"{_PREFIX}_hits": ("Tokens of prompts that the prefix cache held", hits, True),
            "vllm:mm_cache_queries": (
                "Images that were looked up in the cache of features",
                image_hits + image_misses,
                True,
            ),
            "vllm:mm_cache_hits": ("Images whose features were cached", image_hits, True),
            "share4v:answers_admitted": (
                "Answers that are queued, running or being prepared",
                self.admission.active,
                False,
            ),
        }


def _one(values: Mapping[str, Any]) -> int:
    return 1


def _openai_shape(values: Mapping[str, Any]) -> tuple[Shape, str]:
    return openai_shape(values)


def _anthropic_shape(values: Mapping[str, Any]) -> tuple[Shape, str]:
    return anthropic_shape(values.get("output_config")), "output_config"


def _ollama_shape(values: Mapping[str, Any]) -> tuple[Shape, str]:
    return ollama_shape(values.get("format")), "format"
