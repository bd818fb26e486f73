"""Verification: the model is asked to complete a caption before each color, number and place that it states.

A question in words ("What color is the cat?") would need a parser of sentences, and a model that was trained on
questions. The beginning of the caption is a question that every captioner understands: after "In the top left there are
two large", the probabilities of "red" and "blue" say what it sees there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.engine import Engine, ImageSet, Request

from ..dataset.inference.token_rules import forced_ids
from .stated_facts import StatedFact, stated_facts

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from mindone.models.share4v.generation.continuous_batch import Completion

    from ..base import Pipeline

MARGIN = 1.5  # natural logarithm; the other word must be 4.5 times as probable as the stated one
_TOP = 40  # most probable words to ask for
_QUESTION = "Describe this image"


@dataclass(frozen=True)
class Contradiction:
    """A word of a caption that the model does not agree with.

    Attributes:
        kind: "color", "number" or "place".
        stated: the word of the caption.
        expected: the word that the model expects there.
        start: index of the word's first character.
        log_ratio: logarithm of how many times the expected word is as probable.
    """

    kind: str
    stated: str
    expected: str
    start: int
    log_ratio: float


@dataclass(frozen=True)
class _Question:
    row: int
    fact: StatedFact


class Verifier:
    """Checks captions against their images.

    Args:
        pipeline: model, processor and template, from `pipeline("image-to-text", ...)`.
        margin: logarithm of how many times another word must be as probable as the stated one.
        batch_size: number of words that are checked together.
        question: what the model is asked for a caption.

    Example:
        >>> from PIL import Image
        >>> from mindone.pipelines import pipeline
        >>> from mindone.pipelines.image_to_text.evaluation.verify import Verifier
        >>> verifier = Verifier(pipeline("image-to-text", model="sharegpt4v-tiny"))
        >>> caption = "The background is green."
        >>> [one.stated for one in verifier.check([Image.new("RGB", (96, 96), "white")], [caption])[0]]
        ['green']
    """

    def __init__(
        self, pipeline: Pipeline, margin: float = MARGIN, batch_size: int = 8, question: str = _QUESTION
    ) -> None:
        self._pipeline, self._margin, self._batch_size = pipeline, margin, batch_size
        self._question = question
        self._first_id = lru_cache(maxsize=None)(self._find_first_id)
        self._settings = GenerationSettings.from_arguments({"max_new_tokens": 1, "logprobs": _TOP})

    def check(self, images: Sequence[PILImage], captions: Sequence[str]) -> list[list[Contradiction]]:
        """Return the contradictions of each caption, in the order of its words.

        A word at the beginning of a caption is not checked: nothing before it says what is asked.

        Raises:
            ImageLoadError: an image cannot be preprocessed.
        """
        engine: Engine[_Question] = Engine(self._pipeline.model, self._batch_size)
        for request in self._requests(images, captions):
            engine.submit(request)
        found: list[list[Contradiction]] = [[] for _ in captions]
        while len(engine):
            for completion in engine.step():
                contradiction = self._judge(completion)
                if contradiction is not None:
                    found[completion.request_id.row].append(contradiction)
        return [sorted(one, key=lambda contradiction: contradiction.start) for one in found]

    def _requests(self, images: Sequence[PILImage], captions: Sequence[str]) -> Iterator[Request[_Question]]:
        processor, conversation = self._pipeline.processor, self._pipeline.template().name
        prompt = processor.encode_prompt(processor.prompt(self._question, 1, conversation))
        for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
            pixels = ImageSet(np.asarray(processor.image_processor(image))[None])  # [1, 3, S, S]
            for fact in stated_facts(caption):
                before = caption[: fact.start].rstrip()
                if not before:
                    continue
                try:
                    beginning = forced_ids(processor, before, conversation)
                except ValueError:  # a caption with special tokens in it, which the model does not read as text
                    continue
                ids = np.array([[*prompt, *beginning]])
                yield Request(_Question(row, fact), ids, self._settings, pixels)

    def _judge(self, completion: Completion[_Question]) -> Contradiction | None:
        """Return the contradiction that the probabilities of the next word show, if they do."""
        if completion.error is not None and not isinstance(completion.error, ValueError):
            raise completion.error
        if completion.error is not None or not completion.logprobs:  # the context is full; or the model would end here
            return None
        fact = completion.request_id.fact
        top = dict(completion.logprobs[0].top)
        lowest = min(top.values())  # what is not among the most probable words is at most as probable as the last
        stated = self._best(fact, fact.same, top)
        other = self._best(fact, fact.others, top)
        if other is None or (stated is not None and stated[1] == other[1]):
            return None
        ratio = other[0] - (lowest if stated is None else stated[0])
        if ratio < self._margin:
            return None
        return Contradiction(fact.kind, fact.word, other[2], fact.start, round(ratio, 3))

    def _best(self, fact: StatedFact, words: Iterable[str], top: Mapping[int, float]) -> tuple[float, int, str] | None:
        """Return the most probable of some words with its log-probability and first id; None if none is in `top`."""
        cased = (word.capitalize() if fact.word[0].isupper() else word for word in words)
        found = [(top[first], first, word) for word in cased if (first := self._first_id(word)) in top]
        return max(found, default=None)

    def _find_first_id(self, word: str) -> int:
        processor = self._pipeline.processor
        ids: Any = forced_ids(processor, f"a {word}", self._pipeline.template().name)
        before = forced_ids(processor, "a", self._pipeline.template().name)
        return int(ids[len(before)]) if len(ids) > len(before) else -1
