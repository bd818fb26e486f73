"""What both pipelines do: pictures and texts in, answers out, whole or piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from mindone.models.share4v.generation.decoding import MAX_NEW_TOKENS, stop_strings
from mindone.models.share4v.processing.chat_templates import Template, get_template

if TYPE_CHECKING:
    from mindone.models.share4v import Share4V, Share4VProcessor
    from mindone.models.share4v.generation.streaming import GenerationPiece
    from mindone.models.share4v.processing.image_loading import ImageSource
    from mindone.models.share4v.processing.processor import Inputs, Text

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: ends before the first stop string; no white space around it.
        token_ids: the new ids, without the end-of-text token.
        finish_reason: "eos", "stop" (a stop string), "length" (max_new_tokens) or "context" (the model's is full).
        prompt_tokens: tokens of the prompt, image patches counted.
        seconds: from the call to this answer's end, pictures and prompt included.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    seconds: float


class Pipeline:
    """A model, its processor and a conversation template.

    Args:
        model: the model; its tokenizer becomes the processor's.
        processor: makes the model's inputs.
        conversation: name of the template; by default the processor's.

    Raises:
        ValueError: the template is not known.
    """

    task: ClassVar[str]

    def __init__(self, model: Share4V, processor: Share4VProcessor, conversation: str | None = None) -> None:
        self.conversation = processor.conversation if conversation is None else conversation
        get_template(self.conversation)
        self.model, self.processor = model, processor
        model.tokenizer = processor.tokenizer

    def answer(
        self,
        texts: Sequence[Text],
        images: Sequence[Sequence[ImageSource]],
        settings: Mapping[str, Any],
        conversation: str | None = None,
    ) -> list[Answer]:
        """Answer a batch at once; each gets what it would get alone.

        Args:
            texts: questions or conversations.
            images: for each text its pictures.
            settings: arguments of `generate`, as `check_settings` returns them.
            conversation: name of the template, by default the pipeline's.

        Raises:
            ImageLoadError: a picture cannot be loaded; the message names it.
            ValueError: pictures and `<image>` differ in number, or a prompt fills the model's context.
        """
        begun = time.perf_counter()
        template = self.template(conversation)
        inputs = self.processor(images=images, text=texts, conversation=template.name)
        if settings.get("num_beams", 1) > 1:
            return self._search(inputs, settings, template, begun)
        parts: list[list[GenerationPiece]] = [[] for _ in texts]
        ends = [0.0] * len(texts)
        for piece in self._pieces(inputs, settings, template):
            parts[piece.index].append(piece)
            ends[piece.index] = time.perf_counter() - begun
        return [
            Answer(
                text="".join(piece.text for piece in pieces).strip(),
                token_ids=tuple(piece.token_id for piece in pieces if piece.token_id is not None),
                finish_reason=pieces[-1].finish_reason or "",
                prompt_tokens=pieces[-1].prompt_tokens,
                seconds=end,
            )
            for pieces, end in zip(parts, ends, strict=True)
        ]

    def stream(
        self,
        text: Text,
        images: Sequence[ImageSource],
        settings: Mapping[str, Any],
        conversation: str | None = None,
    ) -> Iterator[GenerationPiece]:
        """Answer one text piece by piece; arguments and errors as in `answer`, which has the same text in the end.

        Raises:
            ValueError: besides, num_beams is more than 1: beams have no text before the end.
        """
        if settings.get("num_beams", 1) > 1:
            raise ValueError("beams cannot be streamed: set num_beams=1")
        template = self.template(conversation)
        inputs = self.processor(images=[list(images)], text=[text], conversation=template.name)
        return self._pieces(inputs, settings, template)

    def template(self, conversation: str | None = None) -> Template:
        """Return the template of that name, or else the pipeline's own."""
        return get_template(self.conversation if conversation is None else conversation)

    def _pieces(self, inputs: Inputs, settings: Mapping[str, Any], template: Template) -> Iterator[GenerationPiece]:
        arguments: dict[str, Any] = {**inputs, **settings}
        for name in ("num_beams", "length_penalty"):
            arguments.pop(name, None)
        return self.model.stream(**{**arguments, "stop": (*stop_strings(settings.get("stop")), *template.stop_strings)})

    def _search(self, inputs: Inputs, settings: Mapping[str, Any], template: Template, begun: float) -> list[Answer]:
        """Answer by beam search, which knows no stop strings: the template's cut the text afterwards."""
        patches = self.model.config.num_image_tokens - 1
        images = (inputs["input_ids"] == self.processor.image_token_id).sum(1)
        lengths = inputs["attention_mask"].sum(1) + patches * images
        arguments: dict[str, Any] = {**inputs, **settings}
        found = self.model.generate(**arguments)
        seconds = time.perf_counter() - begun
        return [
            self._beam_answer(ids, int(length), settings, template, seconds)
            for ids, length in zip(found, lengths, strict=True)
        ]

    def _beam_answer(
        self, ids: Sequence[int], prompt_tokens: int, settings: Mapping[str, Any], template: Template, seconds: float
    ) -> Answer:
        text = self.processor.decode(ids)
        cuts = [place for place in map(text.find, template.stop_strings) if place >= 0]
        reason = "eos"
        if cuts:
            text, reason = text[: min(cuts)].strip(), "stop"
        elif len(ids) >= settings.get("max_new_tokens", MAX_NEW_TOKENS):
            reason = "length"
        elif prompt_tokens + len(ids) >= self.model.config.text_config.context_length:
            reason = "context"
        return Answer(text, tuple(ids), reason, prompt_tokens, seconds)


def batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yield lists of `batch_size` items, the last one maybe shorter; `items` is read no further than asked.

    Raises:
        ValueError: batch_size is no positive integer.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    return _batches(iter(items), batch_size)


def _batches(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, batch_size)):
        yield batch


def is_stream(inputs: object) -> bool:
    """Tell whether `inputs` is a generator, an iterator or a data set, rather than a picture, a text or a list."""
    if isinstance(inputs, (str, bytes, bytearray, memoryview, np.ndarray, Mapping, list, tuple)):
        return False
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))
