"""What an API provides for each of its routes that generate text; everything else is the same for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .chat import Prompt
from .generation import Generation
from .structured_output import Shape

if TYPE_CHECKING:
    from mindone.models.share4v.generation.decoding import GenerationSettings


class Job(Protocol):
    """A request that was read and checked."""

    @property
    def prompts(self) -> Sequence[tuple[Prompt, GenerationSettings]]:
        """The prompts with their settings, one for each answer."""

    @property
    def stream(self) -> bool:
        """Whether to send pieces as they are generated."""


class AnswerWriter(Protocol):
    """Formats the answers to one request."""

    def complete(self) -> dict[str, Any]:
        """Return the body of a complete answer, once all answers have ended."""

    def stream(self) -> AsyncIterator[bytes]:
        """Yield the pieces of a stream, of which the last may report an error."""


@dataclass(frozen=True)
class Endpoint:
    """One route.

    Attributes:
        values: checks the body and returns its fields; must be quick.
        answers: returns how many answers the fields ask for; must be quick.
        shape: returns what structured output the fields ask for, if any, and the name of the field.
        build: returns the request; runs in a thread, because it decodes images.
        writer: formats the answers.
        stream_type: media type of a stream.
    """

    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    answers: Callable[[Mapping[str, Any]], int]
    shape: Callable[[Mapping[str, Any]], tuple[Shape, str]]
    build: Callable[[Mapping[str, Any]], Any]
    writer: Callable[[Any, Generation], AnswerWriter]
    stream_type: str = "text/event-stream"
