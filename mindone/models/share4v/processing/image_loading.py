"""load_image: load a path, URL, data URI, bytes, array or PIL image as one upright RGB image."""

from __future__ import annotations

import base64
import binascii
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union
from urllib.parse import unquote, unquote_to_bytes
from urllib.request import url2pathname

import numpy as np

from ..display import looked_in, redacted
from .color_modes import to_rgb
from .decoder_processes import decode_elsewhere
from .image_decoding import ImageLoadError as ImageLoadError
from .image_decoding import decode, finish
from .image_formats import IMAGE_SUFFIXES as IMAGE_SUFFIXES  # the readers of folders import it from here
from .image_formats import IN_PROCESS_FORMATS, OPENED_FORMATS, PREFIX_BYTES, is_isolated
from .image_limits import max_pixels
from .image_sources import EXPECTED_IMAGE, plain_source

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# In addition everything that `image_sources.plain_source` converts: open files, tensors, dicts.
ImageSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, np.ndarray, BinaryIO, "PILImage"]

CONNECT_SECONDS, READ_SECONDS, DOWNLOAD_SECONDS = 10.0, 30.0, 120.0
MAX_DOWNLOAD_BYTES = 256 * 2**20
_CHANNELS = (1, 3, 4)


class ImageNotFoundError(ImageLoadError, FileNotFoundError):
    """An ImageLoadError that is also a FileNotFoundError: the path does not exist."""


def load_image(source: ImageSource, max_image_pixels: int | None = None) -> PILImage:
    """Load one image as an upright RGB PIL image with 8 bits per channel.

    The orientation that the file states is applied, transparency is composited over white, more than 8 bits per channel
    are scaled to 8, and the first frame of an animation is used. Color profiles are not applied, as in the training of
    the models. No global state is changed.

    Formats, told by content, not by name: JPEG, MPO, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, ICO, PCX, TGA, AVIF
    (Pillow 11.3 and later), HEIF (with pillow-heif) and JPEG XL (with pillow-jxl-plugin). Other formats of Pillow are
    not decoded. `image_limits` bounds the bytes, CPU time and memory of one image. Formats whose decoders cannot be
    interrupted (`Format.is_isolated`) are decoded in a process of their own, which ends with this one.

    Args:
        source: a path (str or Path), an http(s) or file URL, a data URI, the base64 or the bytes of an image file, a
            file opened in binary mode, a dict with "bytes", "image", "path" or "url", a PIL image, or a NumPy array or
            a tensor of MindSpore or PyTorch: HxW, HxWx1, HxWx3 (RGB) or HxWx4 (RGBA), or channels first; uint8, uint16,
            bool, or float in [0, 1]. If both the first and the last axis could be the channels, the last one is.
        max_image_pixels: maximum number of pixels of an image file; by default what Pillow opens, which is
            2 * `PIL.Image.MAX_IMAGE_PIXELS` = 178,956,970 and can be changed there too.

    Raises:
        ImageLoadError: (a ValueError) the source is missing, unreadable, not an image, truncated or too large.
        ImageNotFoundError: (also a FileNotFoundError) the path does not exist.

    Example:
        >>> import numpy as np
        >>> from mindone.models.share4v.processing.image_loading import load_image
        >>> load_image(np.zeros((4, 6), np.uint8)).size
        (6, 4)
    """
    from PIL import Image

    name, given = describe(source), source
    limit = max_pixels(max_image_pixels)
    try:
        source = plain_source(source)
    except (ValueError, OSError) as error:
        raise ImageLoadError(f"{name} cannot be read: {error}") from error
    if source is not given and not hasattr(given, "name"):
        name = describe(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source, name))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), name, limit)
    if isinstance(source, str):
        return _from_text(source, name, limit)
    if isinstance(source, os.PathLike):
        return _from_path(os.fspath(source), name, limit)
    raise ImageLoadError(f"{name} is not an image; give {EXPECTED_IMAGE}")


def describe(source: object) -> str:
    """Return a short description of an image source for messages: the path or URL, or the type and size."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        head = bytes(source[:8])
        return f"{len(source)} bytes" + (f" ({head.hex(' ')}{' ...' if len(source) > 8 else ''})" if head else "")
    if isinstance(source, np.ndarray):
        return f"array of shape {source.shape} and dtype {source.dtype}"
    if isinstance(source, (str, os.PathLike)):
        text = redacted(os.fsdecode(source))
        limit = 40 if text[:5].lower() == "data:" else 200
        return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    file_name = getattr(source, "name", None) if hasattr(source, "read") else None
    if isinstance(file_name, str):
        return f"the file {redacted(file_name)}"
    size = getattr(source, "size", None)
    if hasattr(source, "mode") and isinstance(size, tuple):
        return f"PIL image (mode {source.mode}, {size[0]} x {size[1]})"
    return f"a {type(source).__name__}"


def _from_text(text: str, name: str, limit: int | None) -> PILImage:
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return _decode(io.BytesIO(download(text, name)), name, limit)
    if scheme.startswith("data:"):
        return _decode(io.BytesIO(data_uri_bytes(text, name)), name, limit)
    if scheme.startswith("file://"):
        host, slash, path = text[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise ImageLoadError(
                f"{name}: a file URL must name a local file, not one of the host {host!r}; use file:///"
            )
        return _from_path(url2pathname(slash + path), name, limit)
    return _from_path(text, name, limit)


def _from_path(path: str | bytes, name: str, limit: int | None) -> PILImage:
    file_path = Path(os.fsdecode(path))
    if not os.fspath(path):
        raise ImageLoadError("the path of an image is an empty string; give a path or a URL")
    try:
        if not file_path.exists():
            raise ImageNotFoundError(f"{name}: there is no such file{looked_in(str(file_path))}; check the path")
        if file_path.is_dir():
            raise ImageLoadError(
                f"{name}: it is a directory; give the path of an image in it, or caption the whole directory with "
                "caption_dataset (share4v caption-dataset)"
            )
        if not file_path.is_file():
            raise ImageLoadError(f"{name} is not a regular file; give the path of an image file")
        with file_path.open("rb") as file:
            return _decode(file, name, limit)
    except ImageLoadError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name that is too long or contains a null byte
        reason = getattr(error, "strerror", None) or error  # strerror omits the path, which may be very long
        raise ImageLoadError(f"{name} cannot be read: {reason}; check the path and its permissions") from error


def data_uri_bytes(text: str, name: str) -> bytes:
    """Return the bytes that a data URI contains.

    Raises:
        ImageLoadError: the URI is malformed; the message begins with `name`.
    """
    head, comma, body = text.partition(",")
    if not comma:
        raise ImageLoadError(f"{name}: the data URI has no comma before its data; expected data:image/png;base64,...")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageLoadError(
            f"{name}: the base64 of the data URI is invalid ({error}); encode the file again"
        ) from error


def download(url: str, name: str, timeout: float | None = None) -> bytes:
    """Download a URL into memory, within the time and size limits above.

    Args:
        url: of the image.
        name: begins the messages of errors.
        timeout: seconds to connect and between two pieces; by default CONNECT_SECONDS and READ_SECONDS.

    Raises:
        ImageLoadError: the download failed; the message begins with `name`.
    """
    import requests

    from ..hub.errors import HubError
    from ..hub.transfer import Pace, TooSlowError, open_url

    seconds = (CONNECT_SECONDS, READ_SECONDS) if timeout is None else (timeout, timeout)
    try:
        with open_url(url, Pace(DOWNLOAD_SECONDS), {"User-Agent": "mindone-share4v"}, seconds) as transfer:
            response = transfer.response
            if response.status_code >= 400:
                raise ImageLoadError(
                    f"{name}: the server answered {response.status_code} {response.reason}; check the URL, or "
                    "download the image and give its path"
                )
            return transfer.read(MAX_DOWNLOAD_BYTES)
    except ImageLoadError:
        raise
    except TooSlowError as error:
        raise ImageLoadError(
            f"{name}: the download was not complete after {DOWNLOAD_SECONDS:.0f} s; download the image yourself and "
            "give its path"
        ) from error
    except HubError as error:
        raise ImageLoadError(
            f"{name}: the response is larger than the limit of {MAX_DOWNLOAD_BYTES:,} bytes; download the image "
            "yourself and give its path"
        ) from error
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: URLs that cannot be parsed
        raise ImageLoadError(
            f"{name}: the download failed ({redacted(str(error))}); check the URL and the network, or give a local file"
        ) from error


def _decode(file: BinaryIO, name: str, limit: int | None) -> PILImage:
    """Decode an image file; in a process of its own, if its decoder is a C library that cannot be interrupted."""
    if is_isolated(file.read(PREFIX_BYTES)):
        return decode_elsewhere(file, name, limit)
    file.seek(0)
    return decode(file, name, limit, IN_PROCESS_FORMATS)


def _from_pil(image: PILImage, name: str) -> PILImage:
    """Convert a PIL image; one that its caller opened but has not decoded must be of a format that is decoded here."""
    from PIL import ImageFile

    if isinstance(image, ImageFile.ImageFile) and image.format not in OPENED_FORMATS:
        raise ImageLoadError(
            f"{name}: a file of the format {image.format} is not decoded here; if you trust it, decode it yourself "
            "and pass image.convert('RGB')"
        )
    return finish(image, name, None)


def _from_array(array: np.ndarray, name: str) -> PILImage:
    from PIL import Image

    pixels = array
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS):
        raise ImageLoadError(
            f"{name} is not an image: expected HxW, HxWx1, HxWx3 or HxWx4 (or channels first), with no dimension 0; "
            "give a batch as a list of images"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_eight_bits(pixels, name)))


def _eight_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """Scale an array to uint8; its dtype determines the range of its values."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    kind = pixels.dtype.kind
    if kind not in "iuf":
        raise ImageLoadError(f"{name}: this dtype cannot be pixels; give uint8, uint16, bool or float in [0, 1]")
    low, high = pixels.min(), pixels.max()
    top = 1 if kind == "f" else 255
    if not (low >= 0 and high <= top):  # also catches NaN and infinity
        advice = "divide by their maximum, or cast 0..255 to uint8" if kind == "f" else "cast them to uint8"
        raise ImageLoadError(f"{name}: values from {low} to {high}, expected 0 to {top} for this dtype; {advice}")
    return np.rint(pixels.astype(np.float64) * (255 if kind == "f" else 1)).astype(np.uint8)
