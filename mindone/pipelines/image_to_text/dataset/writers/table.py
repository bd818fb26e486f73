"""The table of output formats: adding a writer is adding a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mindone.models.share4v.suggestions import unknown


class WriterRow(NamedTuple):
    """One output format.

    Attributes:
        name: value of `format` (`--format`).
        suffix: ending of the output file; "" for a writer that writes into a directory only.
        file_name: name of the output file if `out` is a directory; "" for a writer that then writes several files.
        writer: "module:class" of the Writer, relative to this package; imported when it is used.
    """

    name: str
    suffix: str
    file_name: str
    writer: str


_ROWS = (
    WriterRow("txt", "", "", "sidecars:SidecarWriter"),
    WriterRow("caption", "", "", "sidecars:CaptionSidecarWriter"),
    WriterRow("jsonl", ".jsonl", "captions.jsonl", "jsonl:JsonlWriter"),
    WriterRow("parquet", ".parquet", "", "parquet:ParquetWriter"),
    WriterRow("webdataset", "", "", "webdataset:WebDatasetWriter"),
    WriterRow("open-sora-csv", ".csv", "open_sora.csv", "open_sora_files:OpenSoraWriter"),
    WriterRow("open-sora-plan-json", ".json", "open_sora_plan.json", "open_sora_files:OpenSoraPlanWriter"),
)
# Of several rows with one suffix, the first is the default for an `out` with that suffix.
WRITERS: dict[str, WriterRow] = {row.name: row for row in _ROWS}
# Endings that say that `out` is a file. A single .tar file is not supported as an output, only a directory of shards.
FILE_SUFFIXES = (*dict.fromkeys(row.suffix for row in _ROWS if row.suffix), ".tar")


def format_of(out: str | None) -> str:
    """Return the default format for an output path; "txt" (captions beside the images) if there is no path.

    Raises:
        ValueError: the suffix belongs to no format.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.writers import format_of
        >>> format_of(None), format_of("captions.jsonl"), format_of("captions")
        ('txt', 'jsonl', 'txt')
    """
    suffix = "" if out is None or Path(out).is_dir() else Path(out).suffix.lower()
    row = next((row for row in _ROWS if row.suffix == suffix), None)
    if row is None:
        raise ValueError(
            f"{out}: its suffix {suffix!r} belongs to no format; give format as one of {', '.join(WRITERS)}"
        )
    return row.name


def writer_row(name: str) -> WriterRow:
    """Return the row of a format.

    Raises:
        ValueError: the format is unknown; the message has the closest name.
    """
    if name not in WRITERS:
        raise ValueError(unknown("format", name, WRITERS))
    return WRITERS[name]


def check_outputs(formats: Sequence[str], out: str | None, inputs: Sequence[str]) -> None:
    """Check that no output file is also an input.

    Raises:
        ValueError: a format is unknown, or an output file is an input.
    """
    rows = [writer_row(name) for name in formats]
    if out is None:
        return
    for file in (Path(out), *(Path(out) / row.file_name for row in rows if row.file_name)):
        if file.is_file() and any(Path(path).exists() and file.samefile(path) for path in inputs):
            raise ValueError(f"{file} is both an input and the output: choose another path for the output")
