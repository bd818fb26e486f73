"""Base class of the pipelines: answers questions about images, in batches or as a stream of text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from mindone.models.share4v.configuration import NO_VISION
from mindone.models.share4v.generation.decoding import MAX_NEW_TOKENS, stop_strings
from mindone.models.share4v.generation.streaming import Streamer, feed_streamer
from mindone.models.share4v.processing.chat_templates import Template, get_template
from mindone.models.share4v.processing.image_loading import ImageSource, describe, download
from mindone.models.share4v.processing.image_sources import is_image
from mindone.models.share4v.processing.processor import Text

from .settings import CallDefaults

if TYPE_CHECKING:
    from mindone.models.share4v import Share4V, Share4VProcessor
    from mindone.models.share4v.generation.sampling import TokenLogprobs
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
        logprobs: of token_ids, if the settings ask for them; else empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    seconds: float
    logprobs: tuple[TokenLogprobs, ...] = ()


class Pipeline:
    """A model, its processor and a chat template.

    Args:
        model: the model; it is given the processor's tokenizer.
        processor: prepares the model's inputs.
        conversation: name of the chat template; by default the processor's.
        defaults: what calls use if they do not say otherwise.

    Raises:
        ValueError: the template is unknown, or the task needs images and the model has no vision tower.
    """

    task: ClassVar[str]
    needs_vision: ClassVar[bool] = False  # whether there is nothing to ask without an image

    def __init__(
        self,
        model: Share4V,
        processor: Share4VProcessor,
        conversation: str | None = None,
        defaults: CallDefaults | None = None,
    ) -> None:
        self.defaults = CallDefaults() if defaults is None else defaults
        self.conversation = processor.conversation if conversation is None else conversation
        get_template(self.conversation)
        if self.needs_vision and not model.config.has_vision:
            raise ValueError(NO_VISION)
        self.model, self.processor = model, processor
        model.tokenizer = processor.tokenizer

    def batch_size(self, given: int | None) -> int:
        """Return the batch size of a call."""
        chosen = self.defaults.batch_size if given is None else given
        return 1 if chosen is None else chosen

    def timeout(self, given: float | None) -> float | None:
        """Return the timeout of a call's downloads, in seconds."""
        return self.defaults.timeout if given is None else given

    def max_image_pixels(self, given: int | None) -> int | None:
        """Return the maximum number of pixels of a call's images; None is that of `load_image`."""
        return self.defaults.max_image_pixels if given is None else given

    def template(self, conversation: str | None = None) -> Template:
        """Return the chat template of this name; by default the pipeline's own."""
        return get_template(self.conversation if conversation is None else conversation)

    def answer_all(
        self,
        requests: Iterable[Request],
        batch_size: int,
        settings: Mapping[str, Any],
        conversation: str | None = None,
        streamer: Streamer | None = None,
        max_image_pixels: int | None = None,
    ) -> Iterator[tuple[Text, list[Answer]]]:
        """Yield the text of each request and its answers: one, or num_return_sequences of them.

        Requests are read one batch at a time, when it is needed.

        Args:
            requests: texts with their images.
            batch_size: number of texts that are answered together.
            settings, conversation, streamer, max_image_pixels: as for `answer`, whose errors apply too.

        Raises:
            ValueError: batch_size is not a positive integer; raised by the call, before the first request is read.
        """
        groups = batches(requests, batch_size)

        def answers() -> Iterator[tuple[Text, list[Answer]]]:
            for group in groups:
                texts, images = zip(*group, strict=True)
                found = self.answer(texts, images, settings, conversation, streamer, max_image_pixels)
                yield from zip(texts, group_answers(found, len(texts)), strict=True)

        return answers()

    def answer(
        self,
        texts: Sequence[Text],
        images: Sequence[Sequence[ImageSource]],
        settings: Mapping[str, Any],
        conversation: str | None = None,
        streamer: Streamer | None = None,
        max_image_pixels: int | None = None,
    ) -> list[Answer]:
        """Answer a batch of texts; each gets the same answer as in a batch of its own.

        With num_return_sequences N, the answers to text i are those from i * N on.

        Args:
            texts: questions or conversations.
            images: for each text, its images.
            settings: arguments of `generate`, as `check_settings` returns them.
            conversation: name of the chat template; by default the pipeline's.
            streamer: as in `Share4V.generate`; for one text.
            max_image_pixels: as in `load_image`; by default the pipeline's.

        Raises:
            ImageLoadError: an image cannot be loaded; the message names it.
            ValueError: the number of images differs from the number of `<image>`, or a prompt fills the model's
                context.
        """
        start = time.perf_counter()
        settings = {**self.model.generation_config.to_diff_dict(), **settings}
        template = self.template(conversation)
        pixels = self.max_image_pixels(max_image_pixels)
        inputs = self.processor(images, texts, template.name, max_image_pixels=pixels)
        if settings.get("num_beams", 1) > 1:
            if streamer is not None:
                raise ValueError("beam search cannot be streamed: leave streamer out, or set num_beams=1")
            return self._beam_answers(inputs, settings, template, start)
        stream = self._pieces(inputs, settings, template)  # encodes the images, before the first piece is asked for
        preparation = time.perf_counter() - start
        if streamer is not None:
            count = len(texts) * settings.get("num_return_sequences", 1)
            stream = feed_streamer(streamer, inputs["input_ids"], stream, count)
        pieces: list[list[GenerationPiece]] = [[] for _ in range(len(texts) * settings.get("num_return_sequences", 1))]
        for piece in stream:
            pieces[piece.index].append(piece)
        return [
            Answer(
                text="".join(piece.text for piece in own).strip(),
                token_ids=tuple(piece.token_id for piece in own if piece.token_id is not None),
                finish_reason=own[-1].finish_reason or "",
                prompt_tokens=own[-1].prompt_tokens,
                seconds=preparation + own[-1].seconds,
                logprobs=tuple(piece.logprobs for piece in own if piece.logprobs is not None),
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
            ValueError: in addition, num_beams is more than 1, because beam search has no text before its end, or
                num_return_sequences is.
        """
        settings = {**self.model.generation_config.to_diff_dict(), **settings}
        if settings.get("num_beams", 1) > 1:
            raise ValueError("beam search cannot be streamed: set num_beams=1")
        if settings.get("num_return_sequences", 1) > 1:
            raise ValueError("one answer is streamed at a time: leave num_return_sequences out")
        template = self.template(conversation)
        pixels = self.max_image_pixels(None)
        inputs = self.processor([list(images)], [text], template.name, max_image_pixels=pixels)
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
        lengths = np.repeat(lengths, settings.get("num_return_sequences", 1))
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
    if isinstance(inputs, (Mapping, list, tuple)) or is_image(inputs):
        return False
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


def iterate(inputs: Any) -> Iterator[Any]:
    """Iterate over a list, a generator, or a data set with a length and items by index, which ends at its length."""
    if isinstance(inputs, Iterable):
        return iter(inputs)
    return (inputs[index] for index in range(len(inputs)))


def downloaded(image: Any, timeout: float | None) -> Any:
    """Download a URL if there is a timeout, in seconds; everything else is returned for `load_image`.

    Raises:
        ImageLoadError: the download failed.
    """
    if timeout is None or not isinstance(image, str) or not image.startswith(("http://", "https://")):
        return image
    return download(image, describe(image), timeout)


def group_answers(answers: list[Answer], texts: int) -> list[list[Answer]]:
    """Return the answers to each of `texts` texts, which are adjacent in `answers`."""
    count = len(answers) // texts
    return [answers[first : first + count] for first in range(0, len(answers), count)]


def logprob_records(answer: Answer, processor: Share4VProcessor) -> list[dict[str, Any]]:
    """Return the log-probabilities of an answer's tokens as plain values, with the text of each token."""
    size = len(processor.tokenizer)

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        token = processor.tokenizer.token_of(token_id) if token_id < size else ""
        return {"token_id": token_id, "token": token, "logprob": logprob}

    return [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*other) for other in one.top]}
        for one in answer.logprobs
    ]
