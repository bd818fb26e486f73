"""Decoding an image file in this process: opening it, its limits, its pixels as upright RGB, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, BinaryIO

from .color_modes import to_rgb, upright
from .image_formats import FORMATS, RejectedError, UnknownFormatError, header_size, open_image
from .image_limits import LimitedFile, LimitError, check_tiff
from .pixel_loading import is_out_of_memory, is_unsupported, load_pixels

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


class ImageLoadError(ValueError):
    """An image could not be loaded; the message names the source, the problem and what to do.

    Example:
        >>> from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image
        >>> try:
        ...     load_image(b"no picture")
        ... except ImageLoadError as error:
        ...     print(error)
        10 bytes (6e 6f 20 70 69 63 74 75 ...): not an image format that is decoded here; give a JPEG, PNG, WebP, ...
    """


def decode(
    file: BinaryIO,
    name: str,
    limit: int | None,
    names: Collection[str] = FORMATS,
    seconds: float | None = None,
    on_size: Callable[[int], None] = lambda pixels: None,
) -> PILImage:
    """Open an image file and read its first frame completely, within the limits of `image_limits`.

    Args:
        file: open for reading.
        name: begins the messages of errors.
        limit: maximum number of pixels; None for no limit.
        names: the formats that are tried, keys of FORMATS.
        seconds: of CPU time for an image of usual size; by default `image_limits.MAX_CPU_SECONDS`.
        on_size: called with the number of pixels before they are decoded, perhaps more than once.

    Raises:
        ImageLoadError: it cannot be decoded.
        MemoryError: there is not enough memory.
    """
    from PIL import Image

    try:
        limited = LimitedFile(file, seconds)
        check_tiff(limited)
        stated = header_size(limited)
        _check_pixels(stated, limit, name)
        if stated is not None:
            on_size(stated[0] * stated[1])
        image = open_image(limited, names)
    except UnknownFormatError as error:
        file.seek(0)
        problem = str(error) if file.read(1) else "the file is empty; give a JPEG, PNG, WebP, ..."
        raise ImageLoadError(f"{name}: {problem}") from error
    except LimitError as error:
        raise ImageLoadError(too_costly(name, error)) from error
    except (MemoryError, ImageLoadError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageLoadError(_too_large_for_pillow(name, error)) from error
    except RejectedError as error:
        raise ImageLoadError(_damaged(name, error)) from error
    except Exception as error:  # with a broken header, Pillow's plug-ins raise almost any exception
        raise ImageLoadError(_damaged(name, error)) from error
    with image:
        _check_pixels(image.size, limit, name)
        limited.allow_time(image.width * image.height)
        on_size(image.width * image.height)
        if image.format in ("JPEG", "MPO"):
            limited.count_scans(image.width * image.height)
        return finish(image, name, limit)


def finish(image: PILImage, name: str, limit: int | None) -> PILImage:
    """Read the pixels of an opened image, convert them to RGB and apply the orientation; raises as `decode` does."""
    from PIL import Image

    try:
        loaded = load_pixels(image)
        if image.format == "ICO":  # it may contain a larger image than it states
            _check_pixels(image.size, limit, name)
        return upright(to_rgb(loaded), image)
    except (MemoryError, ImageLoadError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageLoadError(_too_large_for_pillow(name, error)) from error
    except LimitError as error:
        raise ImageLoadError(too_costly(name, error)) from error
    except Exception as error:  # truncated or damaged data: OSError, SyntaxError, struct.error, zlib.error, ...
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise ImageLoadError(_damaged(name, error)) from error


def too_costly(name: str, problem: object) -> str:
    """Return the message for an image that exceeds a limit of time or memory, `problem`."""
    return f"{name}: too costly to decode: {problem}; save the image again as a JPEG or PNG, or leave it out"


def _check_pixels(size: tuple[int, int] | None, limit: int | None, name: str) -> None:
    if size is not None and limit is not None and size[0] * size[1] > limit:
        width, height = size
        raise ImageLoadError(
            f"{name}: {width} x {height} pixels are more than the limit of {limit:,}; resize the image, or if you "
            f"trust the file, set max_image_pixels (--max-image-pixels) to {width * height}"
        )


def _too_large_for_pillow(name: str, error: Exception) -> str:
    return f"{name}: too large for Pillow's decoder of this format ({error}); resize the image, or convert it to JPEG"


def _damaged(name: str, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if is_unsupported(error):
        return f"{name}: Pillow does not decode this variant of its format ({reason}); save it again as a PNG or JPEG"
    return f"{name}: the image is truncated or damaged ({reason}); get the file again or leave it out"
