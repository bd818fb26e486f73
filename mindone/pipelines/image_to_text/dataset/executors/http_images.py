"""Images as an endpoint gets them: scaled down, upright, without metadata, as data URIs."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from mindone.models.share4v.processing.image_formats import RejectedError, UnknownFormatError, open_image
from mindone.models.share4v.processing.image_limits import LimitedFile
from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from ..audit.image_hash import hash_of_frames
from ..readers import read_task
from ..readers.downloads import DEFAULT_DOWNLOADS, DownloadOptions
from ..state.records import Frame, Record
from ..state.tasks import Task

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_JPEG_QUALITY = 95
# First bytes of formats that are converted to PNG: PNG, GIF, BMP, TIFF.
_LOSSLESS = (b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE_BYTES = 8
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Among a scan's bytes, FF 00 is a byte FF, and FF D0 to FF D7 are restart markers of the same scan.
# Fill bytes FF before a marker stay with the scan, which is legal: taking them here too would search a run of them
# again from each of its bytes.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def encode_task(
    task: Task, size: int, max_image_pixels: int | None = None, downloads: DownloadOptions = DEFAULT_DOWNLOADS
) -> tuple[Record, tuple[str, ...]]:
    """Read and encode one input; return the beginning of its record, and a data URI for each of its frames.

    What prevents it becomes the record's `error`; there are no URIs then.

    Args:
        task: the input and its prompts.
        size: maximum length of the longer side in pixels; 0 for no limit.
        max_image_pixels: as in `load_image`.
        downloads: how images at URLs are downloaded.
    """
    record, frames = read_task(task, downloads)
    if record.error is not None:
        return record, ()
    try:
        images = [load_image(frame, max_image_pixels) for frame in frames]
        uris = tuple([_uri(frame, image, size) for frame, image in zip(frames, images, strict=True)])
        width, height = images[0].size
        return replace(record, width=width, height=height, image_hash=hash_of_frames(images)), uris
    except (ImageLoadError, ValueError, MemoryError) as error:
        return replace(record, error=str(error) or type(error).__name__), ()


def data_uri(frame: Frame, size: int, max_image_pixels: int | None = None) -> tuple[str, tuple[int, int]]:
    """Return an image as a data URI, and its width and height before it was scaled.

    JPEG and PNG files that are small enough, upright and opaque are sent with their own pixels, but without metadata,
    which may tell where and when a photograph was taken. Others are converted: to PNG if that loses nothing, to JPEG if
    they are scaled or were compressed with loss.

    Raises:
        ImageLoadError: the image cannot be decoded.
    """
    image = load_image(frame, max_image_pixels)
    return _uri(frame, image, size), image.size


def _uri(frame: Frame, image: PILImage, size: int) -> str:
    is_scaled = bool(size) and max(image.size) > size
    name, data = _own_bytes(frame, image) if isinstance(frame, bytes) and not is_scaled else ("", b"")
    if not data:
        lossless = not is_scaled and isinstance(frame, bytes) and frame.startswith(_LOSSLESS)
        data = _encode(_scaled(image, size) if is_scaled else image, lossless)
        name = "PNG" if lossless else "JPEG"
    return f"data:image/{name.lower()};base64,{base64.b64encode(data).decode()}"


def probe_uri() -> str:
    """Return a grey image of 64 x 64 pixels, to ask an endpoint whether it takes images at all."""
    from PIL import Image

    data = _encode(Image.new("RGB", (64, 64), (128, 128, 128)), lossless=True)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _scaled(image: PILImage, size: int) -> PILImage:
    from PIL import Image

    ratio = size / max(image.size)
    width, height = (max(1, round(length * ratio)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _encode(image: PILImage, lossless: bool) -> bytes:
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _own_bytes(file: bytes, image: PILImage) -> tuple[str, bytes]:
    """Return the format of a JPEG or PNG file, and its bytes without metadata; b"" if others may not show `image`."""
    try:
        opened = open_image(LimitedFile(io.BytesIO(file)), ("JPEG", "PNG"))  # of these, only the header is read
    except (UnknownFormatError, RejectedError):
        return "", b""
    name = opened.format or ""  # MPO is a JPEG with more than one image
    is_plain = (
        name in ("JPEG", "PNG")
        and opened.mode in ("RGB", "L")
        and opened.size == image.size
        and "transparency" not in opened.info
        and _is_upright(opened)
    )
    if not is_plain:
        return name, b""
    return name, (_bare_jpeg if name == "JPEG" else _bare_png)(file)


def _is_upright(opened: PILImage) -> bool:
    try:
        return opened.getexif().get(_ORIENTATION_TAG, 1) == 1
    except Exception:  # damaged metadata makes Pillow raise almost anything, a SyntaxError among it
        return False


def _bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG file without comments and application data, except JFIF's and Adobe's, which decoders need.

    What follows the image is left out: cameras append films, with the place where they were taken. A file that is not
    laid out as expected, or is cut off, gives b"".
    """
    kept, position = [data[:2]], 2
    while data[position : position + 1] == b"\xff" and position + 2 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == _END_OF_IMAGE:
            return b"".join((*kept, data[position : position + 2]))
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(data[position:end])
        if marker == _START_OF_SCAN:
            found = _NEXT_MARKER.search(data, end)
            if found is None:
                return b""
            kept.append(data[end : found.start()])
            end = found.start()
        position = end
    return b""


def _bare_png(data: bytes) -> bytes:
    """Return a PNG file with its critical chunks only: header, palette and pixels; b"" if it is cut off."""
    kept, position = [data[:_PNG_SIGNATURE_BYTES]], _PNG_SIGNATURE_BYTES
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if not kind[0] & 0x20:
            kept.append(data[position:end])
        if kind == b"IEND":
            return b"".join(kept)
        position = end
    return b""
