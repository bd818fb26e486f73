"""Writers: from records to outputs. Each output format is one row of WRITERS."""

from __future__ import annotations

from .base import Progress, Target, Writer, WriterOptions
from .finishing import Finisher, OutputRecord, Wording, excess_notes, written_texts
from .following_writer import FollowingWriter, open_writer
from .formats import (
    FILE_SUFFIXES,
    WRITERS,
    WriterRow,
    check_outputs,
    find_existing_output,
    format_of,
    output_path,
    writer_row,
)

__all__ = [
    "FILE_SUFFIXES",
    "WRITERS",
    "Finisher",
    "FollowingWriter",
    "OutputRecord",
    "Progress",
    "Target",
    "Writer",
    "WriterOptions",
    "WriterRow",
    "Wording",
    "check_outputs",
    "excess_notes",
    "find_existing_output",
    "format_of",
    "open_writer",
    "output_path",
    "writer_row",
    "written_texts",
]
