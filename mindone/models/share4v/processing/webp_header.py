"""The size of a WebP image, read from its header: the plug-in gives the whole file to a C library when it opens it.

Source: the WebP container specification (RFC 9649), VP8X, VP8L; RFC 6386, section 9.1.
"""

from __future__ import annotations

_KEY_FRAME = b"\x9d\x01\x2a"
_LOSSLESS = b"\x2f"


def webp_size(prefix: bytes) -> tuple[int, int] | None:
    """Return (width, height) of the canvas; None if this is not the beginning of a WebP file.

    Args:
        prefix: the first 30 bytes of the file or more.

    Example:
        >>> from mindone.models.share4v.processing.webp_header import webp_size
        >>> webp_size(bytes.fromhex("524946461a000000574542505650384c0d0000002f02c00100"))
        (3, 8)
    """
    if prefix[:4] != b"RIFF" or prefix[8:12] != b"WEBP":
        return None
    kind, data = prefix[12:16], prefix[20:30]
    if kind == b"VP8X" and len(data) == 10:  # flags, three reserved bytes, and the size less 1 in 24 bits each
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8 " and data[3:6] == _KEY_FRAME and len(data) == 10:  # the size in 14 bits each, and a scale
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and data[:1] == _LOSSLESS and len(data) >= 5:  # the size less 1 in 14 bits each
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
