"""Base class of the pipelines: answers questions about images, in batches or as a stream of text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from mindone.models.share4v.generation.decoding import MAX_NEW_TOKENS, stop_strings
from mindone.models.share4v.processing.chat_templates import Template, get_template
from mindone.models.share4v.processing.image_loading import ImageSource
from mindone.models.share4v.processing.processor import Text

if TYPE_CHECKING:
    from mindone.models.share4v import Share4V, Share4VProcessor
    from mindone.models.share4v.generation.streaming import GenerationPiece
    from mindone.models.share4v.processing.processor import Inputs

# A question or a conversation, and its images (without those in the conversation's own image parts).
Request: TypeAlias = tuple[Text, Sequence[ImageSource]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: the text before the first stop string, without surrounding white space.
        token_ids: the new ids, without the end-of-text token.
        finish_reason: "eos", "stop" (a stop string), "length" (max_new_tokens) or "context" (the model's context is
            full).
        prompt_tokens: number of tokens of the prompt, including image patches.
        seconds: from the call to the end of this answer, including the preparation of images and prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    seconds: float


class Pipeline:
    """A model, its processor and a chat template.

    Args:
        model: the model; it is given the processor's tokenizer.
        processor: prepares the model's inputs.
        conversation: name of the chat template; by default the processor's.

    Raises:
        ValueError: the template is unknown.
    """

    task: ClassVar[str]

    def __init__(self, model: Share4V, processor: Share4VProcessor, conversation: str | None = None) -> None:
        self.conversation = processor.conversation if conversation is None else conversation
        get_template(self.conversation)
        self.model, self.processor = model, processor
        model.tokenizer = processor.tokenizer

    def template(self, conversation: str | None = None) -> Template:
        """Return the chat template of this name; by default the pipeline's own."""
        return get_template(self.conversation if conversation is None else conversation)

    def answer_all(
        self,
        requests: Iterable[Request],
        batch_size: int,
        settings: Mapping[str, Any],
        conversation: str | None = None,
    ) -> Iterator[tuple[Text, Answer]]:
        """Yield the text and the answer of each request; requests are read one batch at a time, when it is needed.

        Args:
            requests: texts with their images.
            batch_size: number of texts that are answered together.
            settings, conversation: as for `answer`, whose errors apply too.

        Raises:
            ValueError: batch_size is not a positive integer; raised by the call, before the first request is read.
        """
        groups = batches(requests, batch_size)

        def answers() -> Iterator[tuple[Text, Answer]]:
            for group in groups:
                texts, images = zip(*group, strict=True)
                yield from zip(texts, self.answer(texts, images, settings, conversation), strict=True)

        return answers()

    def answer(
        self,
        texts: Sequence[Text],
        images: Sequence[Sequence[ImageSource]],
        settings: Mapping[str, Any],
        conversation: str | None = None,
    ) -> list[Answer]:
        """Answer a batch of texts; each gets the same answer as in a batch of its own.

        Args:
            texts: questions or conversations.
            images: for each text, its images.
            settings: arguments of `generate`, as `check_settings` returns them.
            conversation: name of the chat template; by default the pipeline's.

        Raises:
            ImageLoadError: an image cannot be loaded; the message names it.
            ValueError: the number of images differs from the number of `<image>`, or a prompt fills the model's
                context.
        """
        start = time.perf_counter()
        template = self.template(conversation)
        inputs = self.processor(images=images, text=texts, conversation=template.name)
        if settings.get("num_beams", 1) > 1:
            return self._beam_answers(inputs, settings, template, start)
        stream = self._pieces(inputs, settings, template)  # encodes the images, before the first piece is asked for
        preparation = time.perf_counter() - start
        pieces: list[list[GenerationPiece]] = [[] for _ in texts]
        for piece in stream:
            pieces[piece.index].append(piece)
        return [
            Answer(
                text="".join(piece.text for piece in own).strip(),
                token_ids=tuple(piece.token_id for piece in own if piece.token_id is not None),
                finish_reason=own[-1].finish_reason or "",
                prompt_tokens=own[-1].prompt_tokens,
                seconds=preparation + own[-1].seconds,
            )
            for own in pieces
        ]

    def stream(
        self,
        text: Text,
        images: Sequence[ImageSource],
        settings: Mapping[str, Any],
        conversation: str | None = None,
    ) -> Iterator[GenerationPiece]:
        """Yield the answer to one text while it is generated; the pieces make up the text that `answer` returns.

        Arguments and errors are those of `answer`, for one text.

        Raises:
            ValueError: in addition, num_beams is more than 1: beam search has no text before its end.
        """
        if settings.get("num_beams", 1) > 1:
            raise ValueError("beam search cannot be streamed: set num_beams=1")
        template = self.template(conversation)
        inputs = self.processor(images=[list(images)], text=[text], conversation=template.name)
        return self._pieces(inputs, settings, template)

    def _pieces(self, inputs: Inputs, settings: Mapping[str, Any], template: Template) -> Iterator[GenerationPiece]:
        stop = (*stop_strings(settings.get("stop")), *template.stop_strings)
        arguments: dict[str, Any] = {**inputs, **settings, "stop": stop}
        for name in ("num_beams", "length_penalty"):  # settings of beam search, which `stream` does not have
            arguments.pop(name, None)
        return self.model.stream(**arguments)

    def _beam_answers(
        self, inputs: Inputs, settings: Mapping[str, Any], template: Template, start: float
    ) -> list[Answer]:
        """Answer by beam search, which does not support stop strings: the text is cut at the template's afterwards."""
        arguments: dict[str, Any] = {**inputs, **settings}
        batch_ids = self.model.generate(**arguments)
        seconds = time.perf_counter() - start
        num_images = (inputs["input_ids"] == self.processor.image_token_id).sum(1)  # [B]
        # Each placeholder becomes num_image_tokens patches. [B]
        lengths = inputs["attention_mask"].sum(1) + num_images * (self.model.config.num_image_tokens - 1)
        context_length = self.model.config.text_config.context_length
        answers = []
        for ids, prompt_tokens in zip(batch_ids, map(int, lengths), strict=True):
            text, reason = self.processor.decode(ids), "eos"
            cuts = [position for position in map(text.find, template.stop_strings) if position >= 0]
            if cuts:
                text, reason = text[: min(cuts)].strip(), "stop"
            elif len(ids) >= settings.get("max_new_tokens", MAX_NEW_TOKENS):
                reason = "length"
            elif prompt_tokens + len(ids) >= context_length:
                reason = "context"
            answers.append(Answer(text, tuple(ids), reason, prompt_tokens, seconds))
        return answers


def batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yield lists of `batch_size` items, the last one possibly shorter; items are read when their batch is asked for.

    Raises:
        ValueError: batch_size is not a positive integer.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, batch_size)), [])


def is_stream(inputs: object) -> bool:
    """Return whether `inputs` is a generator, an iterator or a data set, rather than an image, a text or a list."""
    if isinstance(inputs, (str, bytes, bytearray, memoryview, np.ndarray, Mapping, list, tuple)):
        return False
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))
