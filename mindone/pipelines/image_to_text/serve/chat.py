"""Chats of requests in one form for all APIs, and their preparation for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.models.share4v.processing.messages import IMAGE_TOKEN
from mindone.models.share4v.processing.plain_text import protect

from .errors import ApiError, invalid
from .images import ImageReader, not_an_image
from .options import Limits
from .tokens import token_text

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.base import Pipeline

_CHARACTERS_PER_TOKEN = 32  # more than that on average cannot fit into the context; such texts are not tokenized
ROLES = ("system", "user", "assistant")


@dataclass
class Turn:
    """One message.

    Attributes:
        role: "system", "user" or "assistant".
        text: its text parts, joined.
        images: (source, where it is in the request) of its images.
    """

    role: str
    text: str
    images: list[tuple[str, str]] = field(default_factory=list)

    def for_log(self) -> dict[str, Any]:
        """Return what a log shows of it: role, text and the number of images."""
        return {"role": self.role, "text": self.text, "images": len(self.images)}


@dataclass(frozen=True)
class Prompt:
    """A prompt that is ready for the model.

    Attributes:
        input_ids: int64 [1, L], one id for each image.
        pixel_values: float32 [N, 3, S, S]; None without images.
        tokens: number of tokens, image patches included.
        image_tokens: how many of them are image patches.
        turns: what a log shows of its messages; empty if it is not a chat.
    """

    input_ids: np.ndarray
    pixel_values: np.ndarray | None
    tokens: int
    image_tokens: int
    turns: tuple[dict[str, Any], ...] = ()


def joined(turns: Sequence[Turn]) -> list[Turn]:
    """Join adjacent messages of one role by a line end, because the model's templates alternate."""
    result: list[Turn] = []
    for turn in turns:
        if result and result[-1].role == turn.role:
            result[-1].text += ("\n" if result[-1].text and turn.text else "") + turn.text
            result[-1].images += turn.images
        else:
            result.append(Turn(turn.role, turn.text, list(turn.images)))
    return result


class PromptBuilder:
    """Turns chats and texts into prompts; call its methods in a thread, because they decode images and tokenize.

    Args:
        pipeline: the model, its processor and template.
        reader: of images.
        limits: number of images.

    Attributes:
        stop_strings: of the template.
        context_length: of the model, in tokens.
        vocabulary: number of token ids.
        has_vision: whether the model can see images.
    """

    def __init__(self, pipeline: Pipeline, reader: ImageReader, limits: Limits) -> None:
        self._pipeline = pipeline
        self._processor = pipeline.processor
        self._reader = reader
        self._limits = limits
        config = pipeline.model.config
        self.stop_strings = pipeline.template().stop_strings
        self.context_length: int = config.text_config.context_length
        self.vocabulary: int = config.text_config.vocab_size
        self.has_vision: bool = config.has_vision
        self._patches: int = config.num_image_tokens

    def chat(self, turns: Sequence[Turn], param: str = "messages") -> Prompt:
        """Return the prompt of a chat; special tokens and `<image>` in its texts are plain text.

        Raises:
            ApiError: (400) the roles are out of order, an image cannot be read, or the prompt fills the context.
        """
        turns = joined(turns)
        sources = [image for turn in turns for image in turn.images]
        if len(sources) > self._limits.images:
            raise invalid(
                f"{param} has {len(sources)} images, more than the limit of {self._limits.images}: send fewer", param
            )
        self._check_length(sum(len(turn.text) for turn in turns), param)
        messages = [self._message(turn) for turn in turns]
        try:
            inputs = self._processor(text=[messages], conversation=self._pipeline.conversation, special_tokens=False)
        except ImageLoadError as error:  # the header was good, the rest was not
            raise not_an_image(sources[0][1] if len(sources) == 1 else f"an image of {param}") from error
        except ValueError as error:
            raise invalid(f"{param}: {error}", param) from error
        prompt = self._prompt(inputs["input_ids"], inputs.get("pixel_values"), param)
        return replace(prompt, turns=tuple(turn.for_log() for turn in turns))

    def text(self, text: str, param: str = "prompt") -> Prompt:
        """Return the prompt that consists of this text, without a template; special tokens in it are plain text."""
        self._check_length(len(text), param)
        try:
            ids = self._processor.encode_prompt(
                protect(text, (IMAGE_TOKEN, *self._processor.tokenizer.split_tokens)), is_protected=True
            )
        except ValueError as error:
            raise invalid(f"{param}: {error}", param) from error
        return self._prompt(np.array([ids], np.int64), None, param)

    def ids(self, ids: Sequence[int], param: str = "prompt") -> Prompt:
        """Return the prompt that consists of these token ids."""
        self._check_ids(ids, param)
        if not ids:
            raise invalid(f"{param} has no tokens", param)
        if self._processor.image_token_id in ids:
            raise invalid(f"{param} has the id {self._processor.image_token_id}, which stands for an image", param)
        return self._prompt(np.array([ids], np.int64), None, param)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids.

        Raises:
            ApiError: (400) an id is not a token.
        """
        self._check_ids(ids, "tokens")
        try:
            return self._processor.decode(ids)
        except ValueError as error:
            raise invalid(f"tokens: {error}", "tokens") from error

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return each token as text; `<image>` for the id that stands for an image."""
        tokenizer, image = self._processor.tokenizer, self._processor.image_token_id
        return [IMAGE_TOKEN if token_id == image else token_text(tokenizer, token_id) for token_id in ids]

    def _message(self, turn: Turn) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": "image", "image": self._reader.read(source, where)} for source, where in turn.images
        ]
        return {"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]}

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.vocabulary:
                raise invalid(f"{param} has the id {token_id}, expected 0 to {self.vocabulary - 1}", param)

    def _check_length(self, characters: int, param: str) -> None:
        limit = self.context_length
        if characters > _CHARACTERS_PER_TOKEN * limit:
            raise _too_long(
                f"{param} has {characters} characters, more than the model's context of {limit} tokens", param
            )

    def _prompt(self, input_ids: np.ndarray, pixel_values: np.ndarray | None, param: str) -> Prompt:
        images = 0 if pixel_values is None else len(pixel_values)
        image_tokens = images * self._patches
        tokens = input_ids.shape[1] - images + image_tokens
        if tokens >= self.context_length:
            raise _too_long(
                f"{param} has {tokens} tokens with its {images} images, but the model's context is "
                f"{self.context_length} tokens",
                param,
            )
        return Prompt(input_ids, pixel_values, tokens, image_tokens)


def _too_long(message: str, param: str) -> ApiError:
    return invalid(f"{message}: shorten the text or send fewer images", param, "context_length_exceeded")
