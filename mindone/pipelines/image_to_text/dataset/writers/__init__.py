"""Sinks: what becomes of records. Each form is a row of FORMATS."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .base import FILE_SUFFIXES, Sink, Target, WriterOptions

__all__ = ["FILE_SUFFIXES", "FORMATS", "Sink", "WriterOptions", "check_outputs", "format_of", "open_writer"]

# Name -> "module:class".
FORMATS = {
    "txt": "sidecars:SidecarWriter",
    "caption": "sidecars:CaptionSidecarWriter",
    "jsonl": "jsonl:JsonlWriter",
    "parquet": "parquet:ParquetWriter",
    "webdataset": "webdataset:WebDatasetWriter",
    "open-sora-csv": "open_sora_files:OpenSoraSink",
    "open-sora-plan-json": "open_sora_files:OpenSoraPlanSink",
}
_BY_SUFFIX = {
    "": "txt",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".csv": "open-sora-csv",
    ".json": "open-sora-plan-json",
}


def format_of(out: str | None) -> str:
    """Return the format that an output's name tells; captions beside the pictures where there is no name.

    Raises:
        ValueError: it tells none.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.writers import format_of
        >>> format_of(None), format_of("captions.jsonl"), format_of("captions")
        ('txt', 'jsonl', 'txt')
    """
    suffix = "" if out is None or Path(out).is_dir() else Path(out).suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise ValueError(f"{out}: its ending tells no format; name one of {', '.join(FORMATS)}")
    return _BY_SUFFIX[suffix]


# What a single file is called in a directory.
_FILES = {
    "jsonl": "captions.jsonl",
    "open-sora-csv": "open_sora.csv",
    "open-sora-plan-json": "open_sora_plan.json",
}


def check_outputs(formats: Sequence[str], out: str | None, inputs: Sequence[str]) -> None:
    """Refuse to write over an input.

    Raises:
        ValueError: an output's file is an input.
    """
    if out is None:
        return
    files = [Path(out), *(Path(out) / _FILES[name] for name in formats if name in _FILES)]
    for file in files:
        if file.is_file() and any(Path(one).exists() and file.samefile(one) for one in inputs):
            raise ValueError(f"{file} is both an input and the output: choose another name for the result")


def open_writer(name: str, out: str | None, options: WriterOptions, state: Path) -> Sink:
    """Open an output, or one that an interrupted job left; it reads from the journal what it lacks.

    Args:
        name: a key of FORMATS.
        out: file or directory; None for captions beside the pictures.
        options: how it is written.
        state: the job's directory, with inputs.jsonl, and journal.jsonl if the job was begun before.

    Raises:
        ValueError: the format is not known, or cannot be written there or from these inputs.
        ImportError: a package that the format needs is not installed; the message says which.
        OSError: it cannot be written.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is not known: expected one of {', '.join(FORMATS)}")
    module, _, attribute = FORMATS[name].partition(":")
    found: Any = getattr(import_module(f"{__name__}.{module}"), attribute)
    if module == "open_sora_files":
        from ..state.listing import Listing

        sink: Sink = found(Target(out, options, Listing(state / "inputs.jsonl")), state / "journal.jsonl")
        return sink
    from .following import FollowingWriter

    return FollowingWriter(name, found, out, options, state)
