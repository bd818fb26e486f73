"""Captioning a stream of tasks with one model: prefetch, deduplicate, generate, apply the rules, retry."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mindone.models.share4v.generation.decoding import GenerationSettings, stop_strings
from mindone.models.share4v.generation.engine import IMAGES_PER_RUN, Engine, ImageSet, Request

from ..prompts.steps import next_steps
from ..prompts.variables import has_variables
from ..rules.retries import Attempt, Caption, CaptionKey, accept, complete_record, next_attempt, of_text
from ..rules.text_rules import TextRules
from ..state.records import Record
from .caption_cache import CaptionCache, caption_key
from .prefetch import Prefetcher, PreparedInput, PromptEncoder
from .token_rules import ForbiddenWords, forced_ids

if TYPE_CHECKING:
    from pathlib import Path

    from mindone.models.share4v.generation.continuous_batch import Completion

    from ...base import Pipeline
    from ..options import CaptioningSettings, ModelChoice
    from ..state.tasks import Task

PREFETCH_FACTOR = 2  # inputs to prefetch per slot of the batch, or per image of an encoder run if those are more
MAX_WAITING = 64  # captions that may wait for a slot, and records for the consumer, while images are collected
MAX_BATCHES_AHEAD = 64  # batches of inputs that may be started after the oldest incomplete one


@dataclass(frozen=True)
class Recipe:
    """How the texts of one name are generated.

    Attributes:
        settings: their settings.
        beginning: ids with which they begin.
        stops: strings that end them.
    """

    settings: CaptioningSettings
    beginning: Sequence[int]
    stops: tuple[str, ...]


class Captioner:
    """Captions the tasks of a job.

    Args:
        pipeline: model, processor and template.
        model_name: name of the model in the records.
        settings: how captions are made.
        cache: captions of earlier runs; the same picture and question get the same caption without the model.

    Raises:
        ValueError: the model's vocabulary cannot write a forbidden word or the forced beginning, or the schema is
            invalid.
        ImportError: there is a schema, and llguidance is not installed.
    """

    def __init__(
        self, pipeline: Pipeline, model_name: str, settings: CaptioningSettings, cache: CaptionCache | None = None
    ) -> None:
        self.pipeline = pipeline
        self.model_name = model_name
        self.settings = settings
        self.cache = CaptionCache(None, settings) if cache is None else cache
        named = {text.name: text.settings for text in settings.texts}
        self.recipes = {name: self._recipe(one) for name, one in (named or {"": settings}).items()}
        self._forbidden: dict[tuple[str, ...], Callable[[Sequence[int]], Collection[int]]] = {(): lambda token_ids: ()}
        for recipe in self.recipes.values():
            self.forbidden_by(recipe.settings.rules)
        self.encoder = PromptEncoder(
            pipeline.processor,
            pipeline.template().name,
            {name: recipe.beginning for name, recipe in self.recipes.items()},
            settings.blind_texts,
        )

    def _recipe(self, settings: CaptioningSettings) -> Recipe:
        """Return how the texts with some settings are generated.

        A schema is compiled before the first record, and its shortest caption compared with the maximum length.
        """
        pipeline = self.pipeline
        # With variables, each task has its own beginning.
        beginning = "" if has_variables(settings.begin_with) else settings.begin_with
        own = () if settings.schema is not None else pipeline.template().stop_strings  # one in the JSON would cut it
        if settings.schema is not None:
            self._check_schema(settings)
        return Recipe(
            settings,
            forced_ids(pipeline.processor, beginning, pipeline.template().name),
            (*stop_strings(settings.generation.get("stop")), *own),
        )

    def _check_schema(self, settings: CaptioningSettings) -> None:
        constraint = self.pipeline.model.grammars.constraint(settings.schema, None)
        longest = settings.max_new_tokens
        if constraint is not None and longest is not None and len(constraint.ending) > longest:
            raise ValueError(
                f"a caption that matches the schema needs {len(constraint.ending)} tokens, but max_new_tokens is "
                f"{longest}: increase it"
            )

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield a record for every task, in the order in which they are completed.

        Tasks may end before all of them have arrived, and go on meanwhile (`Prefetcher`).

        Raises:
            FloatingPointError: the model's logits are not finite, for example because the checkpoint is damaged.
        """
        yield from CaptioningRun(self, iter(tasks)).records()

    def record(self, prepared: PreparedInput) -> Record:
        """Return the record of an input whose captions are complete, or which cannot be captioned."""
        dtype = self.pipeline.model.dtype
        record = replace(prepared.record, model=self.model_name, dtype=dtype, settings=self.settings.recorded)
        if record.error is not None:
            return record
        seconds = 0.0 if prepared.started is None else round(time.perf_counter() - prepared.started, 3)
        captions = [caption for caption in prepared.captions if caption is not None]
        return replace(complete_record(record, captions), seconds=seconds)

    def generation_settings(self, text: str, style: str | None, attempt: Attempt) -> GenerationSettings:
        """Return the settings of an attempt: the style's, overridden by the text's, overridden by the retry's."""
        recipe = self.recipes[text]
        arguments = {**recipe.settings.of_style(style)[0], **attempt.changes, "stop": recipe.stops}
        return GenerationSettings.from_arguments(arguments)

    def forbidden_by(self, rules: TextRules) -> Callable[[Sequence[int]], Collection[int]]:
        """Return the function that forbids ids; built once for each set of forbidden words."""
        words = rules.ungenerated_words
        if words not in self._forbidden:
            self._forbidden[words] = ForbiddenWords(self.pipeline.processor.tokenizer, words)
        return self._forbidden[words]


def make_captioner(choice: ModelChoice, settings: CaptioningSettings, cache: Path | None = None) -> Captioner:
    """Load the model and return its captioner.

    Args:
        choice: the model and how to load it.
        settings: how captions are made.
        cache: file of the caption cache; None uses a temporary file.

    Raises:
        What `pipeline` and `Captioner` raise.
    """
    from mindone.pipelines import pipeline

    loaded = pipeline("image-to-text", **asdict(choice))
    return Captioner(loaded, choice.name, settings, CaptionCache(cache, settings))


# A caption to be generated, the engine's request id: the first input that needs it, and its index among the captions of
# that input, whose prompt, images and attempts are those of the caption.
CaptionId = tuple[PreparedInput, int]


class CaptioningRun:
    """One stream of tasks on its way through the engine.

    Attributes:
        incomplete: inputs that wait for captions, by number, oldest first.
        asked: captions that the engine works on, by what determines them.
        receivers: what gets each of them: the caption itself, and those of equal pictures with the same prompt. Inputs
            that failed meanwhile are left out, even the first.
    """

    def __init__(self, captioner: Captioner, tasks: Iterator[Task]) -> None:
        self.captioner = captioner
        self.tasks = tasks
        self.engine: Engine[CaptionId] = Engine(captioner.pipeline.model, captioner.settings.batch_size)
        self.incomplete: dict[int, PreparedInput] = {}
        self.asked: dict[CaptionKey, CaptionId] = {}
        self.receivers: dict[CaptionId, list[CaptionId]] = {}
        self._images: WeakValueDictionary[str | None, ImageSet] = WeakValueDictionary()  # by sha256
        self._records: deque[Record] = deque()
        self._started = 0  # inputs; their numbers may have gaps

    def records(self) -> Iterator[Record]:
        """Yield the records as they are completed."""
        captioner, settings = self.captioner, self.captioner.settings
        ahead = PREFETCH_FACTOR * max(settings.batch_size, IMAGES_PER_RUN)
        with Prefetcher(
            self.tasks,
            captioner.encoder,
            settings.workers,
            ahead,
            settings.max_image_pixels,
            settings.downloads,
        ) as prefetcher:
            while not prefetcher.exhausted or self.incomplete:
                prefetcher.refill()
                self.fill_engine(prefetcher)
                for completion in self.engine.step():
                    self._handle(completion)
                while self._records:
                    yield self._records.popleft()

    def fill_engine(self, prefetcher: Prefetcher) -> None:
        """Start prefetched inputs; wait for the next one only if there is nothing else to do."""
        while not prefetcher.exhausted and self._accepts_inputs():
            if not prefetcher.ready and (len(self.engine) or self._records):
                return
            self.start(prefetcher.take())

    def _accepts_inputs(self) -> bool:
        """Return whether to start more inputs: enough to fill the free slots, with images for full encoder runs."""
        encoder_runs = -(-self.engine.free // IMAGES_PER_RUN)
        return (
            self.engine.waiting_images < encoder_runs * IMAGES_PER_RUN
            and max(self.engine.waiting, len(self._records)) < MAX_WAITING
            and not self._is_far_ahead()
        )

    def _is_far_ahead(self) -> bool:
        """Return whether the records of too many inputs wait in memory for the oldest incomplete one."""
        oldest = next(iter(self.incomplete.values()), None)
        limit = MAX_BATCHES_AHEAD * self.captioner.settings.batch_size
        return oldest is not None and self._started - oldest.order > limit

    def start(self, prepared: PreparedInput) -> None:
        """Request the captions of an input."""
        self._started += 1
        if prepared.record.error is not None:
            self._records.append(self.captioner.record(prepared))
            return
        prepared.order = self._started
        if prepared.images is not None:  # hundreds of equal pictures may wait for the same captions: keep one copy
            prepared.images = self._images.setdefault(prepared.record.sha256, prepared.images)
        self.incomplete[prepared.task.item.number] = prepared
        for index in list(prepared.input_ids):
            self._request(prepared, index)

    def _request(self, prepared: PreparedInput, index: int, is_step: bool = False) -> None:
        """Take a caption from the cache, wait for one that is being generated, or submit it.

        Args:
            prepared: the input; nothing is done if it has failed.
            index: which of its captions.
            is_step: whether the prompt contains an earlier text of the input, whose row of the KV cache has the image.
        """
        if prepared.record.error is not None:
            return
        cache, caption_id = self.captioner.cache, (prepared, index)
        key = _key(caption_id)
        cached = cache.get(key)
        if cached is not None:
            self._deliver(caption_id, cached)
        elif key in self.asked:
            self.receivers[self.asked[key]].append(caption_id)
        else:
            settings = self.captioner.recipes[prepared.task.text_of(index)].settings
            prepared.attempts[index] = cache.attempts(key, settings.seed, settings.attempts - 1)
            self.asked[key] = caption_id
            self.receivers[caption_id] = [caption_id]
            self._submit(caption_id, is_step)

    def _submit(self, caption_id: CaptionId, is_first: bool = False) -> None:
        """Queue the next attempt at a caption; it comes before all others if `is_first`."""
        prepared, index = caption_id
        captioner, name, style = self.captioner, prepared.task.text_of(index), prepared.task.styles[index]
        settings = captioner.recipes[name].settings
        attempt = next_attempt(prepared.attempts[index], settings.seed, _key(caption_id))
        prepared.attempts[index].append(attempt)
        request = Request(
            request_id=caption_id,
            input_ids=prepared.input_ids[index],
            settings=captioner.generation_settings(name, style, attempt),
            images=None if name in captioner.settings.blind_texts else prepared.images,
            forbidden=captioner.forbidden_by(settings.of_style(style)[1]),
            beginning=prepared.beginnings[index],
        )
        self.engine.submit(request, is_first)

    def _request_steps(self, prepared: PreparedInput, index: int) -> None:
        """Request the texts whose prompts can be made now that another text of the input is there."""
        captioner, task = self.captioner, prepared.task
        answers = [None if caption is None else caption.text for caption in prepared.captions]
        try:
            for place, prompt in list(next_steps(task, answers, index)):
                prompts = prepared.record.prompts
                prepared.record = replace(prepared.record, prompts=(*prompts[:place], prompt, *prompts[place + 1 :]))
                beginning = prepared.beginnings[place]
                prepared.input_ids[place] = captioner.encoder.encode(task, place, prompt, prepared.frames, beginning)
                self._request(prepared, place, is_step=True)
        except ValueError as error:  # an answer is empty, or contains what no prompt can
            self._fail_inputs([prepared], f"{task.text_of(index)}: {error}")

    def _handle(self, completion: Completion[CaptionId]) -> None:
        """Accept a caption, retry it, or fail the inputs that need it."""
        caption_id = completion.request_id
        receivers = self.receivers.get(caption_id)
        if receivers is None:  # all of them failed in the meantime
            return
        prepared, index = caption_id
        name, attempts = prepared.task.text_of(index), prepared.attempts[index]
        if isinstance(completion.error, ValueError):  # the prompt fills the model's context, or pixels are not finite
            self._close(caption_id)
            self._fail_inputs([receiver for receiver, _ in receivers], of_text(name, str(completion.error)))
            return
        if completion.error is not None:
            raise completion.error
        first, started = receivers[0][0], completion.started
        if first.started is None or (started is not None and started < first.started):
            first.started = started
        answer = Caption(completion.text, len(completion.token_ids), completion.finish_reason)
        settings = self.captioner.recipes[name].settings
        rules = settings.of_style(prepared.task.styles[index])[1]
        caption = accept(attempts, rules, settings.attempts, answer, completion.token_ids)
        if caption is None:
            self.captioner.cache.put_attempt(_key(caption_id), len(attempts), attempts[-1])
            self._submit(caption_id)
            return
        self.captioner.cache.put(_key(caption_id), caption)
        self._close(caption_id)
        for receiver in receivers:
            self._deliver(receiver, caption)

    def _deliver(self, caption_id: CaptionId, caption: Caption) -> None:
        prepared, index = caption_id
        if prepared.record.error is not None:  # another of its captions failed
            return
        prepared.captions[index] = caption
        if None not in prepared.captions:
            del self.incomplete[prepared.task.item.number]
            self._records.append(self.captioner.record(prepared))
        elif prepared.task.needs:
            self._request_steps(prepared, index)

    def _close(self, caption_id: CaptionId) -> None:
        """Generate a caption no longer, because it is complete or nothing needs it."""
        del self.receivers[caption_id], self.asked[_key(caption_id)]

    def _fail_inputs(self, failed: Collection[PreparedInput], reason: str) -> None:
        """Record the failure of inputs, and stop generating what only they need."""
        for prepared in dict.fromkeys(failed):
            prepared.record = replace(prepared.record, error=reason)
            del self.incomplete[prepared.task.item.number]
            self._records.append(self.captioner.record(prepared))
        for caption_id, receivers in list(self.receivers.items()):
            receivers[:] = [receiver for receiver in receivers if receiver[0].record.error is None]
            if not receivers:
                self._close(caption_id)
                self.engine.cancel(caption_id)


def _key(caption_id: CaptionId) -> CaptionKey:
    prepared, index = caption_id
    return caption_key(prepared.task, prepared.record.sha256, index, prepared.record.prompts[index])
