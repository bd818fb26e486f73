"""The columns `match` and `contradictions`: a table of images and captions is written again with how well they fit.

`match` is CLIP's score; Open-Sora's `tools/datasets/datautil.py --matchmin` filters by it, and its own tool writes the
same name. `contradictions` are words of a caption that a captioning model does not agree with (`verify.py`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image
from mindone.models.share4v.suggestions import unknown

from ..dataset.readers import ItemError, ReaderOptions, list_inputs, read_item
from ..dataset.readers.rows import IMAGE_COLUMNS
from ..dataset.state.atomic_files import atomic_write
from ..dataset.state.records import dumps
from .caption_files import CAPTION_COLUMNS

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from ..dataset.state.records import Item
    from .verify import Contradiction

MATCH, CONTRADICTIONS = "match", "contradictions"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_DECIMALS = 4
_MAX_PROBLEMS = 100
# Images and texts -> a value for each.
Score = Callable[[Sequence["PILImage"], Sequence[str]], Iterable[Any]]
Check = Callable[[Sequence["PILImage"], Sequence[str]], Iterable[Sequence["Contradiction"]]]


@dataclass
class MatchSummary:
    """What `add_match` did.

    Attributes:
        path: the table that was written.
        rows: number of rows that were scored or verified.
        scores: of the rows that have one, in order.
        contradicted: number of rows with contradictions.
        failed: number of rows that could not be scored; their cells are empty.
        problems: the first of them, with the reasons.
    """

    path: Path
    rows: int = 0
    scores: list[float] = field(default_factory=list)
    contradicted: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)


def add_match(
    table: str | Path,
    score: Score | None = None,
    check: Check | None = None,
    *,
    out: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_root: str | Path | None = None,
    batch_size: int = 16,
) -> MatchSummary:
    """Write a table again, with the columns `match` and `contradictions` of each row's image and caption.

    Args:
        table: .csv, .tsv, .jsonl or .parquet file.
        score: computes the column `match` of a batch, such as `ClipScorer.scores`.
        check: finds the contradictions of a batch, such as `Verifier.check`; they are a list in JSONL, and in other
            tables the same as JSON text.
        out: file to write; by default `table` with "_match" after its name, as Open-Sora's tool does.
        image_column, caption_column: by default "path", "source" or what `caption_dataset` takes for images; and
            "caption", "text" or another name of captions. Of a list of captions, the first counts.
        image_root: directory of relative paths; by default the current one for "source", else the table's.
        batch_size: number of rows that are scored together.

    Raises:
        ValueError: the table's kind is unknown, it has no such columns, or there is nothing to add.
        OSError: a file cannot be read or written.
        ImportError: the table is Parquet, and pyarrow is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.evaluation.match_table import add_match
        >>> add_match("open_sora.csv", ClipScorer("clip-vit-large-patch14").scores).path  # doctest: +SKIP
        PosixPath('open_sora_match.csv')
    """
    table = Path(table)
    functions = {name: function for name, function in ((MATCH, score), (CONTRADICTIONS, check)) if function is not None}
    if not functions:
        raise ValueError("there is nothing to add to the table: give score (--clip) or check (--verify)")
    if table.suffix.lower() not in _FORMATS:
        raise ValueError(f"{table}: expected a table that ends in {', '.join(_FORMATS)}; a job writes one with format")
    if not table.is_file():
        raise FileNotFoundError(f"{table}: there is no such file")
    names = _FORMATS[table.suffix.lower()].names(table)
    image = _chosen(table, "image", image_column, ("path", "source", *IMAGE_COLUMNS), names)
    caption = _chosen(table, "caption", caption_column, CAPTION_COLUMNS, names)
    root = image_root if image_root is not None else "." if image == "source" else None
    options = ReaderOptions(image_column=image, image_root=None if root is None else str(root))
    summary = MatchSummary(Path(out) if out is not None else table.with_name(f"{table.stem}_match{table.suffix}"))
    if summary.path.exists() and summary.path.samefile(table):
        raise ValueError(f"{table} is read while {summary.path} is written: choose another name (out, --out)")
    scored = partial(_scored, list_inputs([str(table)], options), caption, functions, batch_size, summary)
    with atomic_write(summary.path) as file:
        _FORMATS[table.suffix.lower()].copy(table, file, scored, tuple(functions))
    return summary


def _chosen(table: Path, what: str, given: str | None, known: Sequence[str], names: Sequence[str]) -> str:
    if given is not None:
        if given not in names:
            raise ValueError(f"{table}: {unknown('column', given, names)}")
        return given
    found = next((name for name in known if name in names), None)
    if found is None:
        shown = ", ".join(map(repr, names[:20]))
        raise ValueError(f"{table}: no column of {what}s among {shown}; name it with {what}_column (--{what}-column)")
    return found


Row = Mapping[str, Any]
Scored = Iterator[tuple[Row, Mapping[str, Any]]]  # rows with their new columns


def _scored(
    items: Iterator[Item],
    caption: str,
    functions: Mapping[str, Callable[[Sequence[PILImage], Sequence[str]], Iterable[Any]]],
    batch_size: int,
    summary: MatchSummary,
    rows: Iterator[Row],
) -> Scored:
    """Yield each row with its new columns, which are empty if it cannot be scored."""
    pairs = zip_longest(rows, items)
    while batch := list(islice(pairs, batch_size)):
        images: list[PILImage] = []
        texts: list[str] = []
        indices = []
        for index, (row, item) in enumerate(batch):
            if row is None or item is None:
                raise ValueError("the table changed while it was read: run the command again")
            text = _text(row.get(caption))
            try:
                if text is None:
                    raise ItemError(f"there is no {caption!r}")
                frames = read_item(item).frames
                image = load_image(frames[len(frames) // 2])
            except (ItemError, ImageLoadError, OSError, ValueError, MemoryError) as error:
                summary.failed += 1
                if len(summary.problems) < _MAX_PROBLEMS:
                    summary.problems.append(f"{item.source}: {error}")
                continue
            images.append(image)
            texts.append(text)
            indices.append(index)
        values: list[dict[str, Any]] = [{} for _ in batch]
        for name, function in functions.items() if images else ():
            for index, value in zip(indices, function(images, texts), strict=True):
                values[index][name] = _plain(name, value)
        summary.rows += len(indices)
        summary.scores += [value[MATCH] for value in values if MATCH in value]
        summary.contradicted += sum(bool(value.get(CONTRADICTIONS)) for value in values)
        yield from ((row, dict.fromkeys(functions) | value) for (row, _), value in zip(batch, values, strict=True))


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON."""
    return float(value) if name == MATCH else [asdict(one) for one in value]


def _cell(name: str, value: Any) -> Any:
    """Return a value as a cell of a CSV or Parquet table."""
    if value is None or name == MATCH:
        return value
    return dumps(value)


def _text(value: Any) -> str | None:
    """Return the caption in a cell; of a list, also as JSON in a CSV cell, the first."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, (list, tuple)):
        value = next(iter(value), None)
    return value if isinstance(value, str) and value.strip() else None


ScoreRows = Callable[[Iterator[Row]], Scored]


@dataclass(frozen=True)
class _Format:
    names: Callable[[Path], list[str]]
    copy: Callable[[Path, BinaryIO, ScoreRows, tuple[str, ...]], None]


def _csv_names(table: Path) -> list[str]:
    with _utf8(table), table.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter=_DELIMITERS[table.suffix.lower()]), [])


@contextmanager
def _utf8(table: Path) -> Iterator[None]:
    """Say of a file in another encoding what to do."""
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{table}: not UTF-8 text (byte {byte:#04x}): save it as UTF-8") from error


def _csv_rows(reader: csv.DictReader[str]) -> Iterator[Row]:
    """Yield the rows that `list_inputs` has too: without those of a spreadsheet that were emptied."""
    for row in reader:
        further = row.pop(None, [])  # type: ignore[call-overload]
        if any(further):
            raise ValueError(f"it has more fields than the {len(reader.fieldnames or ())} columns: quote its commas")
        if any(row.values()):
            yield row


def _copy_csv(table: Path, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    delimiter = _DELIMITERS[table.suffix.lower()]
    with _utf8(table), table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        names = [*(name for name in reader.fieldnames or () if name not in added), *added]
        text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
        writer = csv.DictWriter(text, names, delimiter=delimiter)
        writer.writeheader()
        try:
            for row, values in score(_csv_rows(reader)):
                cells = {name: _cell(name, value) for name, value in values.items()}
                if cells.get(MATCH) is not None:
                    cells[MATCH] = f"{cells[MATCH]:.{_DECIMALS}f}"
                writer.writerow({**row, **cells})
        except UnicodeDecodeError:
            raise
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{table}, line {reader.line_num}: {error}") from error
        finally:
            text.detach()


def _jsonl_rows(file: BinaryIO, table: Path) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{table}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{table}, line {number}: expected an object, got {row!r:.60}")
        yield row


def _jsonl_names(table: Path) -> list[str]:
    with table.open("rb") as file:
        return list(next(_jsonl_rows(file, table), {}))


def _copy_jsonl(table: Path, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    with table.open("rb") as file:
        for row, values in score(_jsonl_rows(file, table)):
            rounded = {
                name: round(value, _DECIMALS) if isinstance(value, float) else value for name, value in values.items()
            }
            out.write(f"{dumps({**row, **rounded})}\n".encode())


def _parquet_names(table: Path) -> list[str]:
    from ..dataset.readers.arrow_columns import import_pyarrow

    import_pyarrow()
    import pyarrow.parquet as parquet

    return list(parquet.read_schema(table).names)


def _copy_parquet(table: Path, out: BinaryIO, score: ScoreRows, added: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with ExitStack() as stack:
        file = stack.enter_context(parquet.ParquetFile(table))
        kept = [name for name in file.schema_arrow.names if name not in added]
        types = {MATCH: pa.float32(), CONTRADICTIONS: pa.string()}
        fields = [file.schema_arrow.field(name) for name in kept]
        schema = pa.schema([*fields, *((name, types[name]) for name in added)])
        writer = stack.enter_context(parquet.ParquetWriter(out, schema))
        # The rows go through one generator, so that batches of scores may span batches of the file.
        batches: list[Any] = []

        def rows() -> Iterator[Row]:
            for batch in file.iter_batches(1024):
                batches.append(batch.select(kept))
                yield from batch.to_pylist()

        waiting: list[Mapping[str, Any]] = []
        for _, values in score(rows()):
            waiting.append(values)
            while batches and len(waiting) >= len(batches[0]):
                batch = batches.pop(0)
                own = waiting[: len(batch)]
                del waiting[: len(batch)]
                columns = [pa.array([_cell(name, one[name]) for one in own], types[name]) for name in added]
                writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, *columns], schema=schema))


_FORMATS = {
    ".csv": _Format(_csv_names, _copy_csv),
    ".tsv": _Format(_csv_names, _copy_csv),
    ".jsonl": _Format(_jsonl_names, _copy_jsonl),
    ".parquet": _Format(_parquet_names, _copy_parquet),
}
