"""Images of a request: from a data URI, base64 or a URL to the bytes of a file whose header was checked."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.processing.image_loading import ImageLoadError, data_uri_bytes

from .errors import ApiError, invalid
from .options import Limits

if TYPE_CHECKING:
    from .remote_images import ImageDownloader

# Pillow's names of the formats that are accepted; the content decides, whatever the client calls it.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP")  # and WebP, see `_check`
_RIFF = b"RIFF"
_ACCEPTED = "a JPEG, PNG, WebP, GIF or BMP file"
_URL = ("http://", "https://")
_EXAMPLE = 'expected "data:image/png;base64,..." or the base64 alone'


class ImageReader:
    """Reads the images of requests.

    Args:
        limits: size of an image and of downloads.
        downloader: fetches URLs; None refuses them.
    """

    def __init__(self, limits: Limits, downloader: ImageDownloader | None) -> None:
        self._limits = limits
        self._downloader = downloader

    def read(self, source: str, param: str) -> bytes:
        """Return the bytes of an image file; called in a thread, because it may download and reads the file's header.

        Args:
            source: a data URI, base64, or a URL. Paths and file URLs are never opened.
            param: where the image is in the request, for errors.

        Raises:
            ApiError: (400) the source is none of these, or the image is damaged, too large or of another format.
        """
        if source[:5].lower() == "data:":
            data = self._from_data_uri(source, param)
        elif is_url(source):
            if self._downloader is None:
                raise invalid(
                    f"{param} is a URL, but this server downloads no images: send the image itself, as a data URI, or "
                    "ask its operator to allow the host (--allow-url-hosts)",
                    param,
                    "url_not_allowed",
                )
            data = self._downloader.fetch(source, param)
        else:
            data = _decode_base64(source, param)
        self._check(data, param)
        return data

    def _from_data_uri(self, source: str, param: str) -> bytes:
        end = source.find(",")
        if end < 0 or not source[:end].lower().endswith(";base64"):
            raise invalid(f"{param} is a data URI without base64: {_EXAMPLE}", param, "invalid_image")
        try:
            return data_uri_bytes(source, param)
        except ImageLoadError as error:
            raise invalid(f"{param} is not valid base64: {_EXAMPLE}", param, "invalid_image") from error

    def _check(self, data: bytes, param: str) -> None:
        """Check the format and the size that the header states, before anything is decoded."""
        from mindone.models.share4v.processing.image_formats import header_size, open_image
        from mindone.models.share4v.processing.image_limits import LimitedFile

        if not data:
            raise invalid(f"{param} is empty: send {_ACCEPTED}", param, "invalid_image")
        try:
            file = LimitedFile(io.BytesIO(data))
            if data[:4] == _RIFF:  # WebP, of which nothing but the size is read in this process
                width, height = header_size(file) or (0, 0)
            else:
                with open_image(file, FORMATS) as image:
                    width, height = image.size
        except MemoryError:
            raise
        except Exception as error:  # the text of Pillow's errors may contain addresses, so it is not passed on
            raise not_an_image(param) from error
        limits, limit = self._limits, None
        if not width * height:
            raise not_an_image(param)
        if width * height > limits.image_pixels:
            limit = f"{limits.image_pixels:,}"
        elif max(width, height) > limits.image_side:
            limit = f"{limits.image_side:,} for a side"
        if limit is not None:
            message = f"{param} has {width} x {height} pixels, more than the limit of {limit}: make the image smaller"
            raise invalid(message, param, "image_too_large")


def is_url(source: str) -> bool:
    """Return whether the source of an image is a URL that would be downloaded."""
    return source[:8].lower().startswith(_URL)


def names_url(value: Any) -> bool:
    """Return whether a string in a JSON value is a URL, so that reading its images may wait for another server."""
    remaining = [value]
    while remaining:
        one = remaining.pop()
        if isinstance(one, str):
            if is_url(one):
                return True
        elif isinstance(one, Mapping):
            remaining.extend(one.values())
        elif isinstance(one, (list, tuple)):
            remaining.extend(one)
    return False


def not_an_image(param: str) -> ApiError:
    """Return the error for data that cannot be decoded."""
    return invalid(f"{param} is damaged or not an image: send {_ACCEPTED}", param, "invalid_image")


def _decode_base64(text: str, param: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{param} is not valid base64: {_EXAMPLE}", param, "invalid_image") from error
