"""Chat messages: the one place where `{"role", "content"}` messages and the images in them are parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from .image_loading import ImageSource

IMAGE_TOKEN = "<image>"
ROLES = ("system", "user", "assistant")
# Keys of an image part that can hold its image, in the order in which Hugging Face's pipelines look for them.
IMAGE_KEYS = ("image", "url", "path", "base64")
_EXPECTED_PARTS = (
    'expected {"type": "text", "text": "..."}, {"type": "image", "path": "..."} (or "url", "base64", "image"; without '
    'any of them, the image comes from the argument images), or {"type": "image_url", "image_url": {"url": "..."}}'
)


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        text: the text, with one `<image>` for each image.
        images: the images of the message's image parts, in order; None for a part without an image of its own.
            A `<image>` that the user typed into the text has no entry here.
    """

    role: str
    text: str
    images: tuple[ImageSource | None, ...] = ()


@dataclass(frozen=True)
class _ImagePart:
    source: ImageSource | None


def is_conversation(value: object) -> TypeGuard[Sequence[Mapping[str, Any] | Message]]:
    """Return whether `value` is a list of messages, rather than a question or a list of questions."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    first = value[0]
    return isinstance(first, Message) or (isinstance(first, Mapping) and ("role" in first or "content" in first))


def read_messages(
    messages: Iterable[Mapping[str, Any] | Message], edit: Callable[[str], str] = lambda text: text
) -> list[Message]:
    """Parse the messages of a conversation.

    Args:
        messages: `{"role": "system" | "user" | "assistant", "content": ...}`, where the content is a string or a list
            of the parts below. A Message is returned as it is.

            - `{"type": "text", "text": "..."}`
            - `{"type": "image", "image": picture}`, or with "url", "path" or "base64" (the bytes of an image file in
              base64) instead of "image"; `{"type": "image"}` leaves the image to be given separately.
            - `{"type": "image_url", "image_url": {"url": "..."}}`, or the URL itself in place of the inner object.
        edit: applied to each text that a message contains, before the `<image>` of its image parts are added.

    Returns:
        The messages. Each image part becomes `<image>` and a line end at the front of its message's text, as in
        training; the texts follow in their order.

    Raises:
        ValueError: a message or a part is malformed; the error names the index of both.

    Example:
        >>> from mindone.models.share4v.processing.messages import read_messages
        >>> parts = [{"type": "text", "text": "What is this?"}, {"type": "image", "path": "photo.jpg"}]
        >>> read_messages([{"role": "user", "content": parts}])
        [Message(role='user', text='<image>\\nWhat is this?', images=('photo.jpg',))]
    """
    if isinstance(messages, (str, Mapping)):
        raise ValueError(
            f"a conversation must be a list of messages, got a {type(messages).__name__}; put it in a list"
        )
    return [
        message if isinstance(message, Message) else _read(index, message, edit)
        for index, message in enumerate(messages)
    ]


def fill_images(
    messages: Sequence[Mapping[str, Any] | Message], images: Sequence[ImageSource]
) -> tuple[list[Mapping[str, Any] | Message], list[ImageSource]]:
    """Put images given separately into the image parts that have none, as Hugging Face's pipelines do.

    Args:
        messages: as for `read_messages`.
        images: for the image parts without an image, in their order. If every part has its own, they stand for the
            `<image>` in the texts.

    Returns:
        A copy of the messages in which each "image_url" part is an "image" part and no part is without its image; and
        the images that no part took.

    Raises:
        ValueError: as for `read_messages`, or the number of images differs from the number of parts without one.

    Example:
        >>> from mindone.models.share4v.processing.messages import fill_images
        >>> fill_images([{"role": "user", "content": [{"type": "image"}]}], ["photo.jpg"])
        ([{'role': 'user', 'content': [{'type': 'image', 'image': 'photo.jpg'}]}], [])
    """
    num_empty = sum(image is None for message in read_messages(messages) for image in message.images)
    if not num_empty:
        return [_with_images(message, iter(())) for message in messages], list(images)
    if num_empty != len(images):
        raise ValueError(
            f"the chat has {num_empty} image parts without an image, but {len(images)} images were given; give one "
            "image for each of these parts"
        )
    remaining = iter(images)
    return [_with_images(message, remaining) for message in messages], []


def _with_images(message: Mapping[str, Any] | Message, remaining: Iterator[ImageSource]) -> Mapping[str, Any] | Message:
    """Copy a well-formed message; its image parts without an image take the next one from `remaining`."""
    if isinstance(message, Message):
        return replace(message, images=tuple(next(remaining) if image is None else image for image in message.images))
    if isinstance(message["content"], str):
        return dict(message)
    parts = []
    for part in message["content"]:
        if part["type"] == "image_url":
            parts.append({"type": "image", "image": _url(part)})
        elif part["type"] == "image" and _image_key(part) is None:
            parts.append({**part, "image": next(remaining)})
        else:
            parts.append(dict(part))
    return {**message, "content": parts}


def _read(index: int, message: Any, edit: Callable[[str], str]) -> Message:
    where = f"message {index}"
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f'{where} is {message!r:.80}, expected {{"role": ..., "content": ...}}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"{where} has the role {role!r}, expected one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message(role, edit(content))
    if not isinstance(content, Sequence):
        raise ValueError(
            f"{where} has a content of type {type(content).__name__}, expected a string or a list of parts"
        )
    parts = [_read_part(f"{where}, part {number}", part) for number, part in enumerate(content)]
    images = tuple(part.source for part in parts if isinstance(part, _ImagePart))
    if images and role != "user":
        raise ValueError(
            f"{where} has the role {role!r} and {len(images)} image parts, but only the user can send images"
        )
    text = edit("".join(part for part in parts if isinstance(part, str)))  # a token may be split between two parts
    return Message(role, f"{IMAGE_TOKEN}\n" * len(images) + text, images)


def _read_part(where: str, part: Any) -> str | _ImagePart:
    """Return the text of a text part, or the image of an image part; `where` names the part in errors."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url" and _url(part) is not None:
        return _ImagePart(_url(part))
    if kind == "image":
        return _ImagePart(_image(where, part))
    raise ValueError(f"{where} is {part!r:.80}, {_EXPECTED_PARTS}")


def _image_key(part: Mapping[str, Any]) -> str | None:
    return next((key for key in IMAGE_KEYS if part.get(key) is not None), None)


def _image(where: str, part: Mapping[str, Any]) -> ImageSource | None:
    """Return the image that an "image" part holds, as anything that `load_image` accepts."""
    key = _image_key(part)
    if key is None:
        return None
    return _from_base64(where, part[key]) if key == "base64" else part[key]


def _url(part: Mapping[str, Any]) -> Any:
    """Return the URL of an "image_url" part, or None if it has none."""
    url = part.get("image_url")
    return url.get("url") if isinstance(url, Mapping) else url


def _from_base64(where: str, data: Any) -> str:
    """Return base64 text as a data URI, which `load_image` reads and checks."""
    if not isinstance(data, str):
        raise ValueError(f'{where} has a {type(data).__name__} under "base64", expected the base64 text of an image')
    return data if data[:5].lower() == "data:" else f"data:application/octet-stream;base64,{data}"
