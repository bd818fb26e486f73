"""The table of output formats: adding a writer is adding a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mindone.models.share4v.suggestions import unknown

from .tags import check_texts


class WriterRow(NamedTuple):
    """One output format.

    Attributes:
        name: value of `format` (`--format`).
        suffix: ending of the output file; "" for a writer that writes into a directory only.
        file_name: name of the output file if `out` is a directory; "" for a writer that then writes several files.
        pattern: glob pattern of the files that the writer writes into a directory, if it writes several; "" otherwise.
        writer: "module:class" of the Writer, relative to this package; imported when it is used.
    """

    name: str
    suffix: str
    file_name: str
    pattern: str
    writer: str
    is_default: bool = True  # for an `out` with the suffix; otherwise only `format` chooses it
    copies_images: bool = False  # into `out`, as separate files, which a later run would list if `out` is in an input

    @property
    def writes_sidecars(self) -> bool:
        """Whether the output is one file per input, each of which can be written again by itself."""
        return not self.suffix and not self.pattern and not self.file_name


_ROWS = (
    WriterRow("txt", "", "", "", "sidecars:SidecarWriter"),
    WriterRow("caption", "", "", "", "sidecars:CaptionSidecarWriter"),
    WriterRow("jsonl", ".jsonl", "captions.jsonl", "", "jsonl:JsonlWriter"),
    WriterRow("json", ".json", "captions.json", "", "jsonl:JsonWriter"),
    WriterRow("csv", ".csv", "captions.csv", "", "csv_table:CsvWriter"),
    WriterRow("parquet", ".parquet", "", "part-*.parquet", "parquet:ParquetWriter"),
    WriterRow("webdataset", "", "", "*.tar", "webdataset:WebDatasetWriter"),
    WriterRow("imagefolder", "", "metadata.jsonl", "", "image_folder:ImageFolderWriter", False, True),
    WriterRow("sd-scripts-json", ".json", "meta_cap.json", "", "sd_scripts:SdScriptsWriter", False),
    WriterRow("open-sora-csv", ".csv", "open_sora.csv", "", "open_sora_files:OpenSoraWriter", False),
    WriterRow("open-sora-plan-json", ".json", "open_sora_plan.json", "", "open_sora_files:OpenSoraPlanWriter", False),
)
WRITERS: dict[str, WriterRow] = {row.name: row for row in _ROWS}
# Endings that say that `out` is a file. A single .tar file is not supported as an output, only a directory of shards.
TEXT_SUFFIXES = (".txt", ".caption")  # of the files beside images; no format writes all captions into one of them
_TEXT_FILE = (
    "{}: captions are not written into one text file. Pass a directory as out (--out) to get one text file per image, "
    "or use a file name that ends in .jsonl"
)
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
    row = next((row for row in _ROWS if row.suffix == suffix and row.is_default), None)
    if row is not None:
        return row.name
    if suffix in TEXT_SUFFIXES:
        raise ValueError(_TEXT_FILE.format(out))
    of_suffix = [row.name for row in _ROWS if row.suffix == suffix] or WRITERS
    raise ValueError(
        f"{out}: its suffix {suffix!r} belongs to no format; pass format (--format) as one of {', '.join(of_suffix)}, "
        "or use a file name that ends in .jsonl, .json, .csv or .parquet"
    )


def writer_row(name: str) -> WriterRow:
    """Return the row of a format.

    Raises:
        ValueError: the format is unknown; the message has the closest name.
    """
    if name not in WRITERS:
        raise ValueError(unknown("format", name, WRITERS))
    return WRITERS[name]


def output_path(row: WriterRow, out: str) -> Path:
    """Return `out` as the path of a format: the file, or the directory that the files are written into.

    Raises:
        ValueError: `out` is a file of another format.
    """
    path, suffix = Path(out), Path(out).suffix.lower()
    if path.is_dir():
        return path
    if suffix in TEXT_SUFFIXES:
        raise ValueError(_TEXT_FILE.format(out))
    if suffix in FILE_SUFFIXES and suffix != row.suffix:
        if row.suffix:
            raise ValueError(
                f"{out} ends in {suffix}, expected {row.suffix}; for several formats pass a directory as out (--out)"
            )
        raise ValueError(f"{out} is a file name, but the format {row.name!r} needs a directory as out (--out)")
    if path.is_file() and suffix != row.suffix:
        raise ValueError(f"{out} is a file, but the format {row.name!r} needs a directory as out (--out)")
    return path


def check_outputs(formats: Sequence[str], out: str | None, inputs: Sequence[str], texts: Sequence[str] = ()) -> None:
    """Check that every format can be written to `out` and has all texts, and that no output file is also an input.

    Args:
        formats, out, inputs: of the job.
        texts: names of its texts.

    Raises:
        ValueError: a format is unknown, cannot be written to `out` or has no place for a text, or an output file is an
            input.
        ImportError: a package that a format needs is not installed.
    """
    rows = [writer_row(name) for name in formats]
    for row in rows:
        if out is None and not row.writes_sidecars:
            raise ValueError(f"out (--out) must be a file or a directory for the format {row.name!r}")
        if row.name == "sd-scripts-json":
            check_texts(texts)
        if row.name == "parquet":
            from ..readers.arrow_columns import import_pyarrow

            import_pyarrow()
    if out is None:
        return
    for file in (Path(out), *(Path(out) / row.file_name for row in rows if row.file_name)):
        if file.is_file() and any(Path(path).exists() and file.samefile(path) for path in inputs):
            raise ValueError(f"{file} is both an input and the output: choose another path for the output")
    for row in rows:
        if row.copies_images:
            _check_outside(out, inputs, row.name)
        output_path(row, out)


def _check_outside(out: str, inputs: Sequence[str], name: str) -> None:
    for folder in (Path(path).absolute() for path in inputs):
        if folder.is_dir() and folder in Path(out).absolute().parents:
            raise ValueError(
                f"{out} is in the input folder {folder}, and the format {name!r} copies images into it, which the next "
                "run would caption too: choose an out (--out) elsewhere, or the input folder itself, where nothing is "
                "copied"
            )


def find_existing_output(row: WriterRow, path: Path) -> Path | None:
    """Return a file that a format would replace, or None.

    An empty file holds nothing that could be lost, and neither does a link, which is replaced and not followed.
    """
    if row.suffix and path.suffix.lower() == row.suffix and not path.is_dir():
        return path if _has_content(path) else None
    if row.pattern:
        return next(iter(sorted(path.glob(row.pattern))), None)
    file = path / row.file_name
    return file if row.file_name and _has_content(file) else None


def _has_content(path: Path) -> bool:
    return path.exists() and not path.is_symlink() and bool(path.stat().st_size)
