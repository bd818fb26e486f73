"""The image formats that are decoded, each with its plug-in; and names of those that are recognized only.

Files are told by content. Pillow's registry is not used to choose a plug-in, because `Image.open` prints warnings about
large images and would try formats that are not listed here.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .image_limits import LimitedFile
from .jpeg_xl_header import jpeg_xl_size
from .png_chunks import PNG_SIGNATURE, without_metadata
from .webp_header import webp_size

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


@dataclass(frozen=True)
class Format:
    """A format that is decoded.

    Attributes:
        module: module of the plug-in; importing it registers the plug-in in Pillow, except for pillow-heif.
        plugin: name of its class.
        suffixes: of files in this format.
        is_certain: whether the first bytes identify the format reliably, so that a file that the plug-in rejects is a
            damaged file of this format.
        is_isolated: whether it is decoded in a process of its own, because its decoder is a C library that gets the
            whole file and cannot be interrupted; what it costs is not bounded by the pixels that the header states.
    """

    module: str
    plugin: str
    suffixes: tuple[str, ...]
    is_certain: bool = True
    is_isolated: bool = False


# In the order in which they are tried; TGA, which has no magic number, comes last. Left out of Pillow's formats are
# those that start a program (EPS runs Ghostscript), those that are decoded in Python code and so take minutes for a
# hostile file (XPM, QOI, BLP, DDS, SGI, ...), those that contain other files (ICNS, IPTC, MIC) and those that no
# photograph is stored in. MPO is a JPEG with further images behind the first, which is the one that is read. A new
# format is a new row.
FORMATS = {
    "JPEG": Format("PIL.JpegImagePlugin", "JpegImageFile", ("jpg", "jpeg", "jpe", "jfif", "jif", "mpo")),
    "PNG": Format("PIL.PngImagePlugin", "PngImageFile", ("png", "apng")),
    "WEBP": Format("PIL.WebPImagePlugin", "WebPImageFile", ("webp",), is_isolated=True),
    "GIF": Format("PIL.GifImagePlugin", "GifImageFile", ("gif",)),
    "BMP": Format("PIL.BmpImagePlugin", "BmpImageFile", ("bmp",), False),
    "DIB": Format("PIL.BmpImagePlugin", "DibImageFile", ("dib",), False),
    "TIFF": Format("PIL.TiffImagePlugin", "TiffImageFile", ("tif", "tiff"), is_isolated=True),
    "PPM": Format("PIL.PpmImagePlugin", "PpmImageFile", ("ppm", "pgm", "pbm", "pnm", "pfm"), False),
    "JPEG2000": Format(
        "PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile", ("jp2", "j2k", "j2c", "jpc", "jpx", "jpf"), is_isolated=True
    ),
    "ICO": Format("PIL.IcoImagePlugin", "IcoImageFile", ("ico",), False),
    "AVIF": Format("PIL.AvifImagePlugin", "AvifImageFile", ("avif", "avifs"), False, True),  # since Pillow 11.3
    "PCX": Format("PIL.PcxImagePlugin", "PcxImageFile", ("pcx",), False),
    "HEIF": Format("pillow_heif", "HeifImageFile", ("heic", "heif", "hif", "heics", "heifs"), is_isolated=True),
    "JXL": Format("pillow_jxl.JpegXLImagePlugin", "JXLImageFile", ("jxl",), is_isolated=True),
    "TGA": Format("PIL.TgaImagePlugin", "TgaImageFile", ("tga", "icb", "vda", "vst"), False),
}
IN_PROCESS_FORMATS = tuple(name for name, row in FORMATS.items() if not row.is_isolated)
_ISOLATED_FORMATS = tuple(name for name, row in FORMATS.items() if row.is_isolated)
# Formats of images that an application may have opened itself.
OPENED_FORMATS = frozenset((*FORMATS, "MPO"))
# A file of a format without a plug-in fails with an error that says so, which is better than to be skipped silently.
IMAGE_SUFFIXES = frozenset(f".{suffix}" for row in FORMATS.values() for suffix in row.suffixes)

PREFIX_BYTES = 64  # bytes by which a format is recognized
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CONVERT = "convert it to PNG or JPEG"
# First bytes of formats that are not decoded: name, and what to do.
_NOT_DECODED: tuple[tuple[bytes, str, str], ...] = (
    (b"8BPS", "a Photoshop document", _CONVERT),
    (b"%!PS", "PostScript (EPS)", _CONVERT),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)", _CONVERT),
    (b"/* XPM", "XPM", _CONVERT),
    (b"qoif", "QOI", _CONVERT),
    (b"DDS ", "a DDS texture", _CONVERT),
    (b"icns", "an Apple icon (ICNS)", _CONVERT),
    (b"\x76\x2f\x31\x01", "OpenEXR", _CONVERT),
    (b"#?RADIANCE", "Radiance HDR", _CONVERT),
    (b"II\xbc\x01", "JPEG XR", _CONVERT),
    (b"SIMPLE  =", "FITS", _CONVERT),
    (b"\x01\xda", "SGI", _CONVERT),
    (b"PF\n", "a floating-point map in color (PFM)", _CONVERT),
    (b"P7\n", "a Portable Arbitrary Map (PAM)", _CONVERT),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", _CONVERT),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", _CONVERT),
    (b"gimp xcf", "a GIMP document (XCF)", _CONVERT),
    (b"AT&TFORM", "DjVu", _CONVERT),
    (b"%PDF", "a PDF document", "save its pages as PNG"),
    (b"<svg", "an SVG drawing", "save it as PNG"),
    (b"<?xml", "an XML document, such as an SVG drawing", "save it as PNG"),
    (b"<!doctype html", "a web page", "download the image itself"),
    (b"<html", "a web page", "download the image itself"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull` to get the file itself"),
)
# Pillow plug-ins by format, and what installs them.
_INSTALL = {
    "HEIF": "for HEIF (HEIC) images pillow-heif is needed: pip install 'mindone-share4v[heif]', or convert it to JPEG",
    "JXL": "for JPEG XL images a plug-in is needed: pip install pillow-jxl-plugin, or convert it to PNG",
    "AVIF": "for AVIF images Pillow 11.3 or later is needed: pip install -U pillow, or convert it to PNG",
}


class UnknownFormatError(Exception):
    """The file is not in a format that can be decoded here; the message says what it is, if known, and what to do."""


class RejectedError(Exception):
    """The file has the first bytes of a format, but its plug-in rejected it; the message is the plug-in's."""


def open_image(file: LimitedFile, names: Collection[str] = FORMATS) -> ImageFile:
    """Open an image file with the first plug-in that accepts it; of most formats, only the header is read.

    Pixels are not limited here; the caller checks the size of what is returned. JPEG XL, whose plug-in decodes at once,
    must be checked before, with `header_size`.

    Args:
        file: at its start.
        names: the formats that are tried, keys of FORMATS.

    Raises:
        UnknownFormatError: no plug-in accepts it.
        RejectedError: it is damaged.
        Exception: almost any other, from a plug-in that reads a broken header.
    """
    prefix = file.read(PREFIX_BYTES)
    rejection: Exception | None = None
    for name in FORMATS:
        if name not in names or not _starts_like(name, prefix):
            continue
        plugin = _plugin(name)
        if plugin is None:
            continue
        try:
            file.seek(0)
            image: ImageFile = plugin(without_metadata(file) if name == "PNG" else file, "")
            return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if FORMATS[name].is_certain and rejection is None:
                rejection = error
    if rejection is not None:
        raise RejectedError(str(rejection) or type(rejection).__name__) from rejection
    raise UnknownFormatError(_explanation(prefix))


def is_isolated(prefix: bytes) -> bool:
    """Return whether a file is decoded in a process of its own, according to its first `PREFIX_BYTES`."""
    return any(_starts_like(name, prefix) and _plugin(name) is not None for name in _ISOLATED_FORMATS)


def application_plugin(prefix: bytes) -> tuple[str, str] | None:
    """Return the format and the module of a plug-in that the application registered, because ours is not installed."""
    for name in _ISOLATED_FORMATS:
        if _starts_like(name, prefix) and (plugin := _plugin(name)) is not None:
            module = str(plugin.__module__)
            return None if module.split(".")[0] == FORMATS[name].module.split(".")[0] else (name, module)
    return None


def header_size(file: LimitedFile) -> tuple[int, int] | None:
    """Return (width, height) of a format whose plug-in reads or decodes the whole file when it opens it, else None.

    These are JPEG XL and WebP; None as well for a WebP file that is damaged, which its plug-in says better.

    Raises:
        ValueError: the header of a JPEG XL file is damaged.
    """
    file.seek(0)
    prefix = file.read(PREFIX_BYTES)
    is_jpeg_xl = _starts_like("JXL", prefix) and _plugin("JXL") is not None
    size = jpeg_xl_size(file) if is_jpeg_xl else webp_size(prefix)
    file.seek(0)
    return size


@cache
def _plugin(name: str) -> Any:
    """Return the plug-in's class; None if it is not installed, or this Pillow does not have its library."""
    from PIL import Image

    row = FORMATS[name]
    try:
        found = getattr(import_module(row.module), row.plugin, None)
    except ImportError:
        found = None
    if found is None and name in Image.OPEN:  # the application registered another plug-in for it
        found = Image.OPEN[name][0]
    return found


def _starts_like(name: str, prefix: bytes) -> bool:
    """Return whether a file may be of this format, according to its first bytes."""
    from PIL import Image

    if name == "HEIF":
        return bool(_brands(prefix) & {*_HEIF_BRANDS})
    if name == "JXL":
        return prefix.startswith((b"\xff\x0a", _JXL_CONTAINER))
    if name == "AVIF":
        return bool(_brands(prefix) & {b"avif", b"avis", b"mif1", b"msf1"})
    if name == "PNG":
        return prefix.startswith(PNG_SIGNATURE)
    _plugin(name)
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    try:
        return accept is None or bool(accept(prefix))
    except struct.error:  # the file has fewer bytes than the plug-in looks at
        return False


def _brands(prefix: bytes) -> set[bytes]:
    """Return the brands in the ftyp box at the beginning of an ISO base media file, which tell what it contains."""
    if prefix[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(prefix[:4], "big"), len(prefix))
    return {prefix[8:12], *(prefix[start : start + 4] for start in range(16, end - 3, 4))}


def _explanation(prefix: bytes) -> str:
    """Return what a file is, which no plug-in accepted, and what to do."""
    for name, advice in _INSTALL.items():
        if _starts_like(name, prefix) and _plugin(name) is None:
            return f"not an image format that is decoded here; {advice}"
    text = prefix.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what, advice in _NOT_DECODED:
        if prefix.startswith(magic) or text.startswith(magic.lower()):
            return f"not an image format that is decoded here (it is {what}); {advice}"
    if _brands(prefix):
        return "not an image format that is decoded here (it is MP4 or a relative of it); give a JPEG, PNG, WebP, ..."
    return "not an image format that is decoded here; give a JPEG, PNG, WebP, ..."
