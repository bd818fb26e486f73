"""The texts and images that a processor is called with: which is which, and which images belong to which text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .image_loading import ImageLoadError, ImageSource
from .image_sources import EXPECTED_IMAGE, describe_type, image_batch, is_image
from .messages import is_conversation


def _is_image_or_images(given: Any) -> bool:
    """Return whether a value can only be images: no text is meant."""
    many = given if _is_list(given) else [given]
    return bool(len(many)) and all(not isinstance(one, (str, Mapping)) and is_image(one) for one in many)


def _is_text_or_texts(given: Any) -> bool:
    many = given if _is_list(given) else [given]
    return bool(len(many)) and all(isinstance(one, str) or is_conversation(one) for one in many)


def named_arguments(given: tuple[Any, ...], images: Any, text: Any, conversation: Any) -> tuple[Any, Any, Any]:
    """Return images, text and conversation of a call, of which some were not named."""
    named = {"images": images, "text": text, "conversation": conversation}
    usage = "write processor(images=..., text=..., conversation=...)"
    if len(given) == 1 and images is not None and text is None and _is_text_or_texts(given[0]):
        return images, given[0], conversation  # processor(prompt, images=image)
    if len(given) > len(named):
        raise TypeError(f"{len(given)} arguments without names, expected at most {len(named)}: {usage}")
    for name, one in zip(named, given):  # noqa: B905  the rest is named
        if named[name] is not None and one is not None:
            raise TypeError(
                f"{name} is given twice, once without its name ({type(one).__name__}) and as {name}=: {usage}"
            )
        named[name] = named[name] if one is None else one
    return named["images"], named["text"], named["conversation"]


def pair(text: Any, images: Any) -> tuple[list[Any], list[list[ImageSource]]]:
    """Return the texts of the batch, and for each text the list of the images given separately."""
    if _is_image_or_images(text) and _is_text_or_texts(images):  # processor(prompt, image), as in older examples
        text, images = images, text
    if text is None and images is None:
        raise ValueError("neither text nor images were given: give a question, an image, or both")
    batch = image_batch(images)
    images = images if batch is None else batch
    _check_images(images)
    if text is None or isinstance(text, str) or is_conversation(text):
        own = list(images) if _is_list(images) else [] if images is None else [images]
        nested = next((item for item in own if item is None or _is_list(item)), own)
        if nested is not own:
            raise ValueError(
                f"images contains {nested!r:.60}, but there is one text: give a flat list of images, or a list of texts"
            )
        if text is None and not own:
            raise ValueError("images is an empty list and no text was given: give an image or a question")
        return [text], [own]
    if not _is_list(text):
        raise ValueError(
            f"text is a {type(text).__name__}, expected a question, a list of messages, or a list of either"
        )
    if not text:
        raise ValueError("text is an empty list: give at least one question")
    for index, one in enumerate(text):
        if not isinstance(one, str) and not is_conversation(one):
            raise ValueError(f"text {index} is {one!r:.60}, expected a question or a list of messages")
    if images is None:
        return list(text), [[] for _ in text]
    if len(text) == 1 and not _is_list(images):
        images = [images]
    if not _is_list(images) or len(images) != len(text):
        count = f"{len(images)} entries" if _is_list(images) else "one image"
        raise ValueError(
            f"there are {len(text)} texts but images has {count}: give one entry for each text, which is an image, a "
            "list of images or None"
        )
    return list(text), [list(one) if _is_list(one) else [] if one is None else [one] for one in images]


def _check_images(images: Any) -> None:
    """Check that every entry can be an image, before any of them is read.

    Raises:
        ImageLoadError: one cannot; the message has its number.
    """
    entries = images if _is_list(images) else [images]
    for index, entry in enumerate(entries):
        for one in entry if _is_list(entry) else [entry]:
            if one is not None and not is_image(one):
                which = f"image {index} is" if _is_list(images) else "images is"
                raise ImageLoadError(f"{which} {describe_type(one)}, expected {EXPECTED_IMAGE}")


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))
