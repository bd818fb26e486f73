"""What counts as an image: files, tensors and base64 text become the sources that `load_image` reads."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .image_limits import MAX_IMAGE_BYTES

_MIN_BASE64 = 64  # characters; no image file is smaller, and a shorter text is a path
# How the base64 of an image file begins: JPEG, PNG, GIF, WebP and AVIF or HEIF, BMP, TIFF.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "AAAA", "Qk", "SUkq", "TU0A")
IMAGE_KEYS = ("bytes", "image", "path", "url")  # of {"bytes": ..., "path": ...}, as `datasets` stores images undecoded

EXPECTED_IMAGE = "a path, a URL, bytes, an open file, an array, a tensor or a PIL image"


def plain_source(source: Any) -> Any:
    """Return an image source as a path, URL, bytes, array or PIL image; anything else is returned as it is.

    Args:
        source: an open binary file or a BytesIO, which is read from its current position; a tensor of MindSpore or
            PyTorch; the base64 of an image file; or a dict with "bytes", "image", "path" or "url".

    Raises:
        ValueError: a file was opened as text.

    Example:
        >>> import io
        >>> from mindone.models.share4v.processing.image_sources import plain_source
        >>> plain_source(io.BytesIO(b"bytes of a file"))
        b'bytes of a file'
    """
    if isinstance(source, (str, bytes, os.PathLike, np.ndarray)):
        return _from_base64(source) if isinstance(source, str) else source
    if isinstance(source, Mapping):
        found = next((source[key] for key in IMAGE_KEYS if source.get(key) is not None), source)
        return found if found is source else plain_source(found)
    if hasattr(source, "read") and not _is_pil(source):
        data = source.read(MAX_IMAGE_BYTES + 1)
        if isinstance(data, str):
            raise ValueError("the file of an image was opened as text: open it with mode 'rb'")
        return data
    if _is_tensor(source):
        return _array(source)
    return source


def is_image(source: Any) -> bool:
    """Return whether a value has a type that `load_image` accepts; a string may be a path, a URL or base64."""
    if isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)) or _is_pil(source):
        return True
    if isinstance(source, Mapping):
        return any(source.get(key) is not None for key in IMAGE_KEYS) and "role" not in source
    return _is_tensor(source) or hasattr(source, "read")


def image_batch(source: Any) -> list[np.ndarray] | None:
    """Return the images of an array or tensor [N, H, W, C] or [N, C, H, W]; None for anything else."""
    if not isinstance(source, np.ndarray) and not _is_tensor(source):
        return None
    if len(source.shape) != 4:
        return None
    return list(source if isinstance(source, np.ndarray) else _array(source))


def describe_type(value: object) -> str:
    """Return the type and, shortened, the value of what is not an image, for an error message."""
    shown = repr(value)
    return f"a {type(value).__name__} ({shown if len(shown) <= 60 else shown[:57] + '...'})"


def _is_pil(source: Any) -> bool:
    return type(source).__module__.startswith("PIL.") or hasattr(source, "getbands")


def _is_tensor(source: Any) -> bool:
    """Return whether this is a tensor of MindSpore or PyTorch; neither is imported for it."""
    package = type(source).__module__.partition(".")[0]
    return package in ("mindspore", "torch") and hasattr(source, "shape") and hasattr(source, "dtype")


def _array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "asnumpy"):
        wide = tensor.float() if "bfloat16" in str(tensor.dtype).lower() else tensor
        return np.asarray(wide.asnumpy())
    wide = tensor.detach().cpu()
    return np.asarray((wide.float() if "bfloat16" in str(wide.dtype) else wide).numpy())


def _from_base64(text: str) -> str | bytes:
    """Return the bytes of an image file in base64 without the head of a data URI; any other text as it is."""
    if len(text) < _MIN_BASE64 or not text.startswith(_BASE64_STARTS):
        return text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return text
