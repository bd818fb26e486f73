"""The arguments `images` and `text` of "image-text-to-text", in all their formats, as a list or stream of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.models.share4v.processing.image_sources import EXPECTED_IMAGE, describe_type, image_batch, is_image
from mindone.models.share4v.processing.messages import fill_images, is_conversation

from .base import Request, is_stream, iterate

_REQUEST_KEYS = {"text", "images", "image"}


def read_requests(images: Any, text: Any) -> tuple[Iterable[Request], Literal["flat", "nested", "stream"]]:
    """Return the texts of a call, each with its images, and the shape of the call's result.

    The shape "flat" is a list of records, "nested" a list of lists of one record, "stream" a generator of such lists,
    whose requests are read when they are needed.

    Raises:
        ValueError: there is no text, the numbers of images and texts differ, or an argument has an unknown format.
    """
    if images is None and text is None:
        raise ValueError("neither images nor text were given: give a question or a chat")
    if text is None:
        if _is_images(images):
            raise ValueError(
                'images were given without a question: pass text="...", or use the task "image-to-text" for captions'
            )
        images, text = None, images
    batch = image_batch(images)
    images = images if batch is None else batch
    if is_stream(text):
        _refuse_images(images, "a stream of texts")
        return map(_read_one, iterate(text)), "stream"
    if isinstance(text, str) or is_conversation(text):
        return [_request(text, _as_list(images))], "flat"
    if isinstance(text, Mapping):
        _refuse_images(images, f"text as a {type(text).__name__}")
        return [_read_one(text)], "flat"
    if not isinstance(text, (list, tuple)) or not text:
        raise ValueError(f"text is {text!r:.80}, expected a question, a chat, or a list of either")
    if images is None:
        return [_read_one(one) for one in text], "nested"
    if len(text) == 1 and not isinstance(images, (list, tuple)):
        images = [images]
    if not isinstance(images, (list, tuple)) or len(images) != len(text):
        count = len(images) if isinstance(images, (list, tuple)) else "one image, not a list"
        raise ValueError(
            f"there are {len(text)} texts, but images has {count}: give one entry for each text, an image or a list"
        )
    requests = [_request(one, _as_list(own)) for one, own in zip(text, images, strict=True)]
    return requests, "nested" if is_conversation(text[0]) else "flat"


def _read_one(one: Any) -> Request:
    """Read one entry of a list or a stream."""
    if isinstance(one, Mapping) and "text" in one and set(one) <= _REQUEST_KEYS:
        return _request(one["text"], _as_list(one.get("images", one.get("image"))))
    if isinstance(one, str) or is_conversation(one):
        return _request(one, [])
    raise ValueError(f'got {one!r:.80}, expected a question, a chat, or {{"images": ..., "text": ...}}')


def _request(text: Any, images: list[Any]) -> Request:
    for index, image in enumerate(images):
        if not is_image(image):
            raise ImageLoadError(f"image {index} is {describe_type(image)}, expected {EXPECTED_IMAGE}")
    if isinstance(text, str):
        return text, images
    if not is_conversation(text):
        raise ValueError(f"text is {text!r:.80}, expected a question, or a chat as a list of messages")
    return fill_images(text, images)


def _is_images(images: Any) -> bool:
    """Return whether `images` contains images, rather than texts, chats or requests."""
    if isinstance(images, Mapping) and "text" not in images and is_image(images):
        return True
    if isinstance(images, Mapping) or is_stream(images):
        return False
    if isinstance(images, (list, tuple)) and images:
        return not isinstance(images[0], (Mapping, list, tuple))
    return True


def _as_list(images: Any) -> list[Any]:
    return [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]


def _refuse_images(images: Any, what: str) -> None:
    if images is not None:
        raise ValueError(
            f'images cannot be combined with {what}: leave images out, and give {{"images": ..., "text": ...}} for '
            "each text"
        )
