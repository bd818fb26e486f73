"""The forms in which a question about pictures may come, brought into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import is_stream

_HELD = ("image", "url", "path")


@dataclass(frozen=True)
class Request:
    """One question or chat.

    Attributes:
        text: a question, or a chat's messages.
        images: its pictures, where the chat's image parts do not hold them.
    """

    text: str | list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)

    def full(self, answer: str) -> str | list[dict[str, Any]]:
        """Return the text with its answer: one string, or the chat with one message more."""
        if isinstance(self.text, str):
            return f"{self.text} {answer}"
        return [*self.text, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Asked:
    """All that one call asks.

    Attributes:
        requests: read as they are needed.
        shape: of the result: "flat" is a list of records, "nested" a list of lists of one record, "stream" a generator
            of such lists.
    """

    requests: Iterable[Request]
    shape: Literal["flat", "nested", "stream"]


def read_requests(images: Any, text: Any) -> Asked:
    """Bring the arguments of a call into one form.

    Raises:
        ValueError: there is nothing to answer, pictures and texts disagree in number, or a form is not known.
    """
    if images is None and text is None:
        raise ValueError("neither images nor text are given: give a question, or a chat")
    if text is None:
        if _is_images(images):
            raise ValueError(
                'pictures come without a question: pass text="...", or use the task "image-to-text" to caption them'
            )
        images, text = None, images
    if is_stream(text):
        _no_images(images, "a stream of texts")
        return Asked(map(_read_one, text), "stream")
    if isinstance(text, str) or _is_chat(text):
        return Asked([_request(text, _as_list(images))], "flat")
    if isinstance(text, Mapping):
        _no_images(images, f"text as a {type(text).__name__}")
        return Asked([_read_one(text)], "flat")
    if not isinstance(text, (list, tuple)) or not text:
        raise ValueError(f"text is {text!r:.80}: expected a question, a chat, or a list of either")
    if images is None:
        return Asked([_read_one(one) for one in text], "nested")
    if not isinstance(images, (list, tuple)) or len(images) != len(text):
        count = len(images) if isinstance(images, (list, tuple)) else "one picture, not a list"
        raise ValueError(
            f"there are {len(text)} texts, and images has {count}: give one entry a text, each a picture or a list"
        )
    pairs = [_request(one, _as_list(own)) for one, own in zip(text, images, strict=True)]
    return Asked(pairs, "nested" if _is_chat(text[0]) else "flat")


def _read_one(one: Any) -> Request:
    """Read one entry of a list or a stream."""
    if isinstance(one, Mapping) and "text" in one and set(one) <= {"text", "images", "image"}:
        return _request(one["text"], _as_list(one.get("images", one.get("image"))))
    if isinstance(one, str) or _is_chat(one):
        return _request(one, [])
    raise ValueError(f'got {one!r:.80}: expected a question, a chat, or {{"images": ..., "text": ...}}')


def _request(text: Any, images: list[Any]) -> Request:
    if isinstance(text, str):
        return Request(text, images)
    if not _is_chat(text):
        raise ValueError(f"text is {text!r:.80}: expected a question, or a chat as a list of messages")
    return _filled(text, images)


def _filled(messages: Sequence[Mapping[str, Any]], images: list[Any]) -> Request:
    """Copy a chat, with image parts in one form and the empty ones filled from `images`."""
    empty = 0
    chat: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = [_part(part) for part in content]
            for part in parts:
                if isinstance(part, dict) and part.get("type") == "image" and not any(key in part for key in _HELD):
                    if empty < len(images):
                        part["image"] = images[empty]
                    empty += 1
            chat.append({**message, "content": parts})
        else:
            chat.append(dict(message))
    if not empty:
        return Request(chat, images)
    if empty != len(images):
        raise ValueError(f"the chat has {empty} image parts without a picture, and {len(images)} images are given")
    return Request(chat)


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part  # the template says what is wrong with it
    if part.get("type") == "image" and "base64" in part:
        rest = {key: value for key, value in part.items() if key != "base64"}
        return {**rest, "image": f"data:application/octet-stream;base64,{part['base64']}"}
    address = part.get("image_url")
    if part.get("type") == "image_url" and isinstance(address, Mapping) and "url" in address:
        return {"type": "image", "image": address["url"]}
    return dict(part)


def _is_chat(text: Any) -> bool:
    return isinstance(text, (list, tuple)) and bool(text) and isinstance(text[0], Mapping) and "role" in text[0]


def _is_images(images: Any) -> bool:
    """Tell pictures from what `images` may hold in place of `text`."""
    if isinstance(images, Mapping) or is_stream(images):
        return False
    if isinstance(images, (list, tuple)) and images:
        return not isinstance(images[0], (Mapping, list, tuple))
    return True


def _as_list(images: Any) -> list[Any]:
    return [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]


def _no_images(images: Any, what: str) -> None:
    if images is not None:
        raise ValueError(f'{what} brings its own pictures: leave images out, and give {{"images": ..., "text": ...}}')
