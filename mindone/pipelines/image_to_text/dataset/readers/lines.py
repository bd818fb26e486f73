"""Lines of a file, with bounded memory: a file without line ends is not read into memory as one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

MAX_LINE_BYTES = 2**28  # enough for an image in base64
_PIECE = 2**20


def bounded_lines(file: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line with its line end, and its number of bytes; None in place of a line of more than `limit` bytes.

    Example:
        >>> import io
        >>> from mindone.pipelines.image_to_text.dataset.readers.lines import bounded_lines
        >>> list(bounded_lines(io.BytesIO(b"a\\nbcdef\\ng"), limit=4))
        [(b'a\\n', 2), (None, 6), (b'g', 1)]
    """
    while line := file.readline(limit + 1):
        size = len(line)
        if size <= limit:
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := file.readline(_PIECE)):
            size += len(line)
        yield None, size


def too_long(size: int, limit: int = MAX_LINE_BYTES) -> str:
    """Return why a line is not read."""
    return f"the line has {size:,} bytes, more than the limit of {limit:,}; is it a file of another kind?"
