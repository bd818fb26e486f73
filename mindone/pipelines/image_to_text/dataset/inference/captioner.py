"""One model captions a stream of inputs: texts join its batch as others leave it, and bad ones are tried again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mindone.models.share4v.generation.decoding import GenerationSettings, stop_strings
from mindone.models.share4v.kernels.component import IMAGE_BATCH_SIZES
from mindone.models.share4v.nn.host_ops import split_rows

from ..rules.retries import Attempt, Caption, accept, next_attempt
from ..rules.text_rules import TextRules
from ..state.records import Record
from ..state.tasks import Task
from .caption_cache import CaptionCache
from .prefetch import Preparation, Prepared
from .token_rules import ForbiddenWords, forced_ids

if TYPE_CHECKING:
    from pathlib import Path

    from mindspore import Tensor

    from mindone.models.share4v.generation.continuous_batch import Completion

    from ...base import Pipeline
    from ..options import CaptioningSettings, ModelChoice

AHEAD = 2  # inputs prepared for each text of the batch, or for each picture of a group
ENCODED_TOGETHER = IMAGE_BATCH_SIZES[0]  # pictures of a group for the vision tower, where so many are there
WAITING = 64  # captions that may wait for a place, and records to be taken, while pictures to encode are looked for
FARTHEST = 64  # batches of inputs that may begin after the oldest unfinished one


@dataclass(eq=False)
class _Open:
    """An input some of whose captions are not there yet."""

    prepared: Prepared
    pixel_values: np.ndarray  # [N, 3, S, S]; empty once they are encoded
    order: int  # inputs that had begun by then, this one among them
    captions: list[Caption | None]
    begun: float | None = None  # when the first of them was begun
    features: Tensor | None = None  # of its pictures, [N, P, H]


@dataclass
class _Unit:
    """One caption that is being made."""

    number: int  # of the input
    place: int  # of the prompt among the input's
    key: tuple[bytes, str]
    style: str | None
    attempts: list[Attempt] = field(default_factory=list)


class Captioner:
    """Captions inputs as they come.

    Args:
        pipeline: model, processor and template.
        model_name: how records name the model.
        settings: how captions are made.
        seen: captions made before; equal pictures with equal questions get equal captions, so they are made once.

    Raises:
        ValueError: a forbidden word or the beginning cannot be written with the model's vocabulary.
    """

    def __init__(
        self, pipeline: Pipeline, model_name: str, settings: CaptioningSettings, seen: CaptionCache | None = None
    ) -> None:
        self.pipeline, self.model_name, self.settings = pipeline, model_name, settings
        self.seen = CaptionCache(None) if seen is None else seen
        self.beginning = forced_ids(pipeline.processor, settings.beginning, pipeline.template().name)
        self.stops = (*stop_strings(settings.generation.get("stop")), *pipeline.template().stop_strings)
        self._forbidden: dict[tuple[str, ...], Callable[[Sequence[int]], Collection[int]]] = {(): lambda token_ids: ()}
        self.forbidden_by(settings.rules)

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield a record for every task, in the order in which they are done.

        Raises:
            FloatingPointError: the model's values are no numbers; a damaged checkpoint.
        """
        yield from _Run(self, iter(tasks)).records()

    def record(self, opened: _Open) -> Record:
        """An input all of whose captions are there."""
        captions = [caption for caption in opened.captions if caption is not None]
        return replace(
            self._common(opened.prepared),
            captions=tuple(caption.text for caption in captions),
            tokens=tuple(caption.tokens for caption in captions),
            finish_reasons=tuple(caption.finish_reason for caption in captions),
            notes=tuple(note for caption in captions for note in caption.notes),
            seconds=0.0 if opened.begun is None else round(time.perf_counter() - opened.begun, 3),
        )

    def failure(self, prepared: Prepared, reason: str) -> Record:
        """An input that has no caption, and why."""
        return replace(self._common(prepared), error=reason)

    def _common(self, prepared: Prepared) -> Record:
        item = prepared.task.item
        return Record(
            number=item.number,
            key=item.key,
            source=item.source,
            model=self.model_name,
            dtype=self.pipeline.model.dtype,
            prompts=prepared.task.prompts,
            settings=self.settings.generation,
            sha256=prepared.sha256,
            width=prepared.width,
            height=prepared.height,
            columns={**item.columns, **(prepared.columns or {})},
        )

    def generation_of(self, style: str | None, attempt: Attempt) -> GenerationSettings:
        """The settings of one attempt: the caller's, where he gives none the style's, and what a retry changes."""
        chosen = {**self.settings.of_style(style)[0], **attempt.changes, "stop": self.stops}
        return GenerationSettings.from_arguments(chosen)

    def forbidden_by(self, rules: TextRules) -> Callable[[Sequence[int]], Collection[int]]:
        """What tells which ids must not come next; made once for each set of words."""
        words = rules.forbidden_words
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
    return Captioner(loaded, choice.model, settings, CaptionCache(cache))


class _Run:
    """One stream of tasks on its way through the batch."""

    def __init__(self, captioner: Captioner, tasks: Iterator[Task]) -> None:
        self.captioner, self.tasks = captioner, tasks
        self.batch = captioner.pipeline.model.continuous_batch(captioner.settings.batch_size)
        self.open: dict[int, _Open] = {}  # by number, oldest first
        self.waiting: deque[_Unit] = deque()  # captions that have no place in the batch yet
        self.twins: dict[tuple[bytes, str], list[_Unit]] = {}  # who makes a caption, and who waits for it
        self.done: deque[Record] = deque()
        self.begun = 0  # inputs; their numbers may have gaps

    def records(self) -> Iterator[Record]:
        captioner, pipeline = self.captioner, self.captioner.pipeline
        workers, ahead = captioner.settings.workers, AHEAD * max(captioner.settings.batch_size, ENCODED_TOGETHER)
        conversation = pipeline.template().name
        with Preparation(
            self.tasks, pipeline.processor, conversation, captioner.beginning, workers, ahead
        ) as preparation:
            while not preparation.exhausted or self.open:
                self._admit(preparation)
                for finished in self.batch.step() if len(self.batch) else ():
                    self._judge(finished)
                while self.done:
                    yield self.done.popleft()

    def _admit(self, preparation: Preparation) -> None:
        """Fill the batch's free places with what is ready; wait for a picture where there is nothing else to do."""
        while self.batch.free:
            while preparation.ready and not self._is_far_ahead() and self._has_room():
                self._begin(preparation.take())
            if self.waiting:
                self._join(self.waiting.popleft())
            elif preparation.exhausted or len(self.batch) or self.done or self._is_far_ahead():
                return
            else:
                self._begin(preparation.take())

    def _has_room(self) -> bool:
        """Whether more inputs are to begin, so that pictures can be encoded together."""
        pictures = sum(len(equal[0].pixel_values) for equal in self._unencoded().values())
        return pictures < ENCODED_TOGETHER and len(self.waiting) < WAITING and len(self.done) < WAITING

    def _unencoded(self) -> dict[str | None, list[_Open]]:
        """The inputs whose pictures must be encoded next, in their order, equal ones together."""
        found: dict[str | None, list[_Open]] = {}
        for unit in self.waiting:
            opened = self.open.get(unit.number)
            if opened is not None and opened.features is None:
                found.setdefault(opened.prepared.sha256, []).append(opened)
        return found

    def _is_far_ahead(self) -> bool:
        """Whether the oldest input has held up the results of too many later ones, which wait in memory."""
        oldest = next(iter(self.open.values()), None)
        return oldest is not None and self.begun - oldest.order > FARTHEST * self.captioner.settings.batch_size

    def _begin(self, prepared: Prepared) -> None:
        item = prepared.task.item
        self.begun += 1
        if prepared.error is not None or prepared.pixel_values is None:
            self.done.append(self.captioner.failure(prepared, prepared.error or "it has no pixels"))
            return
        styles = prepared.task.styles
        pixels, prepared = prepared.pixel_values, replace(prepared, pixel_values=None)  # which go once they are encoded
        self.open[item.number] = _Open(prepared, pixels, self.begun, [None] * len(styles))
        for place, style in enumerate(styles):
            self._queue(_Unit(item.number, place, self._key(prepared, place), style))

    def _key(self, prepared: Prepared, place: int) -> tuple[bytes, str]:
        """What decides a caption: picture, question and style; and which of several to the same question it is."""
        task = prepared.task
        repeat = task.prompts[:place].count(task.prompts[place])
        return bytes.fromhex(prepared.sha256 or ""), f"{repeat} {task.styles[place] or ''} {task.prompts[place]}"

    def _queue(self, unit: _Unit) -> None:
        """Let a caption be made, where it neither was nor will be for an equal picture."""
        held = self.captioner.seen.get(unit.key)
        if held is not None:
            self._finish(unit, held)
        elif unit.key in self.twins:
            self._share(unit, self.twins[unit.key][0])
            self.twins[unit.key].append(unit)
        else:
            self.twins[unit.key] = [unit]
            self.waiting.append(unit)

    def _share(self, unit: _Unit, maker: _Unit) -> None:
        """Hold what an equal input holds once, since hundreds may wait for the same caption."""
        opened, other = self.open[unit.number], self.open.get(maker.number)
        if other is not None:
            opened.pixel_values, opened.features = other.pixel_values, other.features

    def _join(self, unit: _Unit) -> None:
        if unit.number in self.open:
            self._generate(unit)
            return
        for one in self.twins.pop(unit.key):  # another caption of its input failed: now the next of them makes it
            if one.number in self.open:
                self._queue(one)

    def _generate(self, unit: _Unit) -> None:
        captioner, opened = self.captioner, self.open[unit.number]
        attempt = next_attempt(unit.attempts, captioner.settings.seed, unit.key)
        try:
            if opened.features is None:
                self._encode(opened)
            ids = opened.prepared.input_ids[unit.place]
            prompts = captioner.pipeline.model.prepare_inputs(ids, image_features=opened.features)
        except ValueError as error:  # the prompt fills the model's context, or pixels are no numbers
            self._fail(unit, str(error))
            return
        opened.begun = opened.begun or time.perf_counter()
        unit.attempts.append(attempt)
        self.batch.join(
            unit,
            prompts,
            captioner.generation_of(unit.style, attempt),
            captioner.forbidden_by(captioner.settings.of_style(unit.style)[1]),
            captioner.beginning,
        )

    def _encode(self, opened: _Open) -> None:
        """Encode an input's pictures, and with them those that are wanted next.

        Raises:
            ValueError: its pixels are not what the model takes.
        """
        model, sha256 = self.captioner.pipeline.model, opened.prepared.sha256
        found = self._unencoded()
        group = [[opened, *found.pop(sha256, ())]]
        for equal in found.values():
            if sum(len(one[0].pixel_values) for one in group) < ENCODED_TOGETHER:
                group.append(equal)
        try:
            features = model.encode_images(np.concatenate([equal[0].pixel_values for equal in group]))  # [N, P, H]
        except ValueError:  # another's pixels may be at fault
            group = group[:1]
            features = model.encode_images(opened.pixel_values)
        counts = [len(equal[0].pixel_values) for equal in group]
        for equal, part in zip(group, split_rows(features, counts), strict=True):
            for one in equal:
                one.features, one.pixel_values = part, one.pixel_values[:0].copy()

    def _judge(self, finished: Completion[_Unit]) -> None:
        """Accept a caption, or send it to the end of the queue to be made anew."""
        unit, settings = finished.request_id, self.captioner.settings
        if finished.error is not None:
            raise finished.error
        answer = Caption(finished.text, len(finished.token_ids), finished.finish_reason)
        rules = settings.of_style(unit.style)[1]
        caption = accept(unit.attempts, rules, settings.attempts, answer, finished.token_ids)
        if caption is None:
            self.waiting.append(unit)
            return
        self.captioner.seen.put(unit.key, caption)
        for one in self.twins.pop(unit.key):
            self._finish(one, caption)

    def _fail(self, unit: _Unit, reason: str) -> None:
        for one in self.twins.pop(unit.key):
            opened = self.open.pop(one.number, None)
            if opened is not None:
                self.done.append(self.captioner.failure(opened.prepared, reason))

    def _finish(self, unit: _Unit, caption: Caption) -> None:
        opened = self.open.get(unit.number)
        if opened is None:  # another of its captions failed
            return
        opened.captions[unit.place] = caption
        if None not in opened.captions:
            del self.open[unit.number]
            self.done.append(self.captioner.record(opened))
