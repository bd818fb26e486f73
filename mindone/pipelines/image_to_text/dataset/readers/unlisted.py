"""Which files of a folder, and which members of an archive, are no inputs, and why (see state/skipped.py)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ..state.regular_files import open_input
from .patterns import matches

# Names that operating systems and programs write beside files, in lower case. Their files may look like images:
# Synology's @eaDir has thumbnails, and __MACOSX has a file ._a.jpg for every a.jpg.
_SYSTEM_NAMES = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information")
)
_SYSTEM_HIDDEN = frozenset((".ds_store", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd"))
_PAX_HEADERS = re.compile(r"PaxHeaders(\.\d+)?")  # what a tar program that does not know extended headers unpacks
# Suffixes of images and videos, whether they can be decoded or not. Those that are listed by default do not get here.
_OTHER_FORMATS = frozenset(
    (
        *("apng", "mpo", "j2k", "j2c", "jpc", "jpx", "jpf", "jpm", "jxl", "jxr", "wdp", "hdp", "heic", "heif", "hif"),
        *("heics", "avifs", "ico", "cur", "icns", "pcx", "dcx", "svg", "svgz", "psd", "psb", "xcf", "kra", "eps", "ai"),
        *("emf", "wmf", "exr", "hdr", "dds", "qoi", "sgi", "ras", "sun", "xbm", "xpm", "pam", "pfm", "bpg", "flif"),
        *("jfi", "jif", "vda", "icb", "vst", "fits", "fts", "dcm", "djvu", "wbmp", "pict", "pct"),
        *("raw", "dng", "cr2", "cr3", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "srw", "x3f"),
        *("vob", "rm", "rmvb", "f4v", "asf", "divx", "mxf", "m2v", "mpe", "3g2", "qt", "y4m"),
    )
)
_OTHER_ARCHIVES = frozenset(
    ("7z", "rar", "zst", "tzst", "lz4", "lz", "lzma", "gz", "bz2", "xz", "tar.zst", "cab", "iso", "cbz", "cbr")
)
# First bytes of images: for files without an extension.
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
)
_HEAD_BYTES = 16


def why_never(name: str, hidden: bool = False) -> str | None:
    """Return why a file or directory with this name is never listed nor entered, or None.

    Args:
        name: one component of a path.
        hidden: whether names that start with a dot are listed.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.unlisted import why_never
        >>> why_never("a.jpg"), why_never("._a.jpg"), why_never(".git"), why_never("__MACOSX")
        (None, 'system', 'hidden', 'system')
    """
    if name.startswith("."):
        if hidden:
            return None
        return "system" if name.startswith("._") or name.lower() in _SYSTEM_HIDDEN else "hidden"
    return "system" if name.lower() in _SYSTEM_NAMES or _PAX_HEADERS.fullmatch(name) else None


def why_no_member(path: str, hidden: bool = False) -> str | None:
    """Return why a member of an archive is never listed, by the rule of `why_never` for each component, or None."""
    parts = (part for part in path.split("/") if part not in ("", ".", ".."))
    return next((reason for part in parts if (reason := why_never(part, hidden))), None)


def why_not_media(name: str) -> str:
    """Return why a file that is no image, video, archive or table by its name is not listed."""
    suffix = os.path.splitext(name)[1].lower().removeprefix(".")
    if not suffix:
        return "no_extension"
    if suffix in _OTHER_FORMATS:
        return "format"
    return "archive" if suffix in _OTHER_ARCHIVES else "other"


def names_a_suffix(pattern: str) -> bool:
    """Return whether a pattern says which extension it is about, so that it may list any file.

    A pattern without one, such as `*` or `cats/*`, selects among the files that are listed by default.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.readers.unlisted import names_a_suffix
        >>> [names_a_suffix(pattern) for pattern in ("*.apng", "a/1.dat", "scan7", "*", "cats/**", "b.*")]
        [True, True, True, False, False, False]
    """
    name = pattern.rstrip("/").rpartition("/")[2]
    if not any(character in name for character in "*?["):
        return True
    return bool(os.path.splitext(name)[1].strip(".*?"))


def differs_in_case(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a path matches a pattern only if upper and lower case are not distinguished."""
    if any(matches(path, pattern) for pattern in patterns):
        return False
    return any(matches(path.lower(), pattern.lower()) for pattern in patterns)


def begins_like_an_image(path: str) -> bool:
    """Return whether the first bytes of a file are those of an image; False if it cannot be read."""
    try:
        with open_input(path) as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return False
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":
        return head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    return head.startswith(_SIGNATURES)
