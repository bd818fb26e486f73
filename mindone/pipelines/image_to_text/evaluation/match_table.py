"""The columns `match` and `contradictions`: a table of images and captions is written again with how well they fit.

`match` is CLIP's score; Open-Sora's `tools/datasets/datautil.py --matchmin` filters by it, and its own tool writes the
same name. `contradictions` are words of a caption that a captioning model does not agree with (`verify.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

from ..dataset.readers import ItemError, ReaderOptions, read_item
from ..dataset.readers.downloads import DEFAULT_DOWNLOADS, DownloadOptions
from ..dataset.readers.rows import IMAGE_COLUMNS
from ..dataset.report.match_scores import match_table
from ..dataset.state.atomic_files import atomic_write
from .caption_files import CAPTION_COLUMNS
from .match_images import WithImages, images_of_job, images_of_rows
from .match_progress import MatchProgress, Values, check_retry, digest_of_files, has_failed_rows
from .scored_tables import TABLE_FORMATS, Row, Scored, Table, chosen_column, find_table

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from ..dataset.state.records import Item
    from .verify import Contradiction

MATCH, CONTRADICTIONS = "match", "contradictions"
_OF_JOBS = {"key", "source"}  # columns of a job's own tables
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
        resumed: number of rows whose values an interrupted call had computed.
    """

    path: Path
    rows: int = 0
    scores: list[float] = field(default_factory=list)
    contradicted: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    resumed: int = 0


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
    encoding: str | None = None,
    downloads: DownloadOptions = DEFAULT_DOWNLOADS,
    resume: Mapping[str, Any] | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> MatchSummary:
    """Write a table again, with the columns `match` and `contradictions` of each row's image and caption.

    Args:
        table: .csv, .tsv, .json (a list of objects), .jsonl or .parquet file; or a folder with one table that
            `caption_dataset` wrote, which may be in Parquet parts. Of a job's own table, with the job's state directory
            beside it, the images are the job's inputs, wherever they are: also in archives and at URLs.
        score: computes the column `match` of a batch, such as `ClipScorer.scores`.
        check: finds the contradictions of a batch, such as `Verifier.check`; they are a list in JSON, and in other
            tables the same as JSON text.
        out: file to write; by default `table` with "_match" after its name, as Open-Sora's tool does, and
            captions_match.parquet in the folder of Parquet parts. Texts are UTF-8.
        image_column, caption_column: by default "path", "source" or what `caption_dataset` takes for images; and
            "caption", "text" or another name of captions. Of a list of captions, the first counts.
        image_root: directory of relative paths; by default the current one for "source", else the table's.
        batch_size: number of rows that are scored together.
        encoding: of a text file; by default UTF-8, or UTF-16 if the file says so.
        downloads: how images at URLs are downloaded.
        resume: what tells `score` and `check` apart from others, as JSON values. With it, values are stored as soon as
            they are computed, in a file beside `out`; after an interruption, the same call computes only the others.
        on_rows: called after every batch with the number of rows so far, and that of rows that could not be scored.
        overwrite: whether `out` is replaced if it exists, and values of an interrupted call with other settings are
            discarded.
        retry_failed: whether only the rows of `out` that could not be scored are computed, for example because a
            server did not answer; it is written again. Needs `resume`, also in the first call.

    Raises:
        ValueError: the table's kind is unknown, it has no such columns, there is nothing to add, or there are values of
            a call with other settings, or no rows to try again.
        FileExistsError: `out` exists.
        OSError: a file cannot be read or written.
        ImportError: the table is Parquet, and pyarrow is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.evaluation.match_table import add_match
        >>> add_match("open_sora.csv", ClipScorer("clip-vit-large-patch14").scores).path  # doctest: +SKIP
        PosixPath('open_sora_match.csv')
    """
    if retry_failed and (overwrite or resume is None):
        raise ValueError("retry_failed needs resume, and cannot be combined with overwrite: leave one out")
    functions = {name: function for name, function in ((MATCH, score), (CONTRADICTIONS, check)) if function is not None}
    if not functions:
        raise ValueError("there is nothing to add to the table: give score (--clip) or check (--verify)")
    opened = _open(table, out, image_column, caption_column, image_root, encoding, overwrite, retry_failed)
    found, summary = opened.table, MatchSummary(opened.out)
    report = on_rows or (lambda rows, failed: None)
    scoring = _Scoring(summary, opened.images, opened.caption, functions, batch_size, downloads, report)
    with ExitStack() as stack:
        if resume is not None:
            settings = {**opened.settings, "functions": sorted(functions), **resume}
            scoring.progress = stack.enter_context(
                closing(MatchProgress(summary.path, settings, overwrite, retry_failed))
            )
            summary.resumed = scoring.progress.known
        with atomic_write(summary.path) as file:
            TABLE_FORMATS[found.suffix].copy(found, file, scoring.scored, tuple(functions))
        if scoring.progress is not None:
            scoring.progress.finish(summary.failed)
    return summary


def check_match(
    table: str | Path,
    *,
    out: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_root: str | Path | None = None,
    encoding: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Path:
    """Return the file that `add_match` would write; arguments and errors as there, before a model is loaded."""
    return _open(table, out, image_column, caption_column, image_root, encoding, overwrite, retry_failed).out


class _Opened(NamedTuple):
    """What is known before the first row is read.

    Attributes:
        table: to read.
        out: file to write.
        caption: column of the captions.
        images: finds the images.
        settings: what says, of an interrupted call, that it read the same rows.
    """

    table: Table
    out: Path
    caption: str
    images: WithImages
    settings: Mapping[str, Any]


def _open(
    table: str | Path,
    out: str | Path | None,
    image_column: str | None,
    caption_column: str | None,
    image_root: str | Path | None,
    encoding: str | None,
    overwrite: bool,
    retry_failed: bool,
) -> _Opened:
    found = find_table(Path(table), encoding)
    path = Path(out) if out is not None else match_table(found.path)
    if path.exists() and any(path.samefile(file) for file in found.files):
        raise ValueError(f"{found.path} is read while {path} is written: choose another name (out, --out)")
    if retry_failed:
        check_retry(path)
    elif os.path.lexists(path) and not overwrite:
        retry = "try the rows again that failed with retry_failed (--retry-failed), " if has_failed_rows(path) else ""
        raise FileExistsError(
            f"{path} exists: {retry}write to another file with out (--out), or replace it with overwrite (--overwrite)"
        )
    names = TABLE_FORMATS[found.suffix].names(found)
    caption = chosen_column(found, "caption", caption_column, CAPTION_COLUMNS, names)
    images = None
    if image_column is None and image_root is None and names and set(names) >= _OF_JOBS:
        images = images_of_job(found)
    if images is None:
        image_column = chosen_column(found, "image", image_column, ("path", "source", *IMAGE_COLUMNS), names)
        root = image_root if image_root is not None else "." if image_column == "source" else None
        root = None if root is None else str(root)
        images = images_of_rows(found, ReaderOptions(image_column=image_column, image_root=root, encoding=encoding))
    settings = {
        "table": digest_of_files(found.files),
        "encoding": encoding,
        "caption": caption,
        "image": image_column,
        "root": None if image_root is None else str(Path(image_root).absolute()),
    }
    return _Opened(found, path, caption, images, settings)


@dataclass
class _Scoring:
    """Computes the new columns of the rows, in batches; those of an interrupted call are read from its progress."""

    summary: MatchSummary
    images: WithImages
    caption: str
    functions: Mapping[str, Callable[[Sequence[PILImage], Sequence[str]], Iterable[Any]]]
    batch_size: int
    downloads: DownloadOptions
    on_rows: Callable[[int, int], None]
    progress: MatchProgress | None = None

    def scored(self, rows: Iterator[Row]) -> Scored:
        """Yield each row with its new columns, which are empty if it cannot be scored."""
        known = () if self.progress is None else self.progress.values()
        triples = zip(self.images(rows), chain(known, repeat(None)))  # noqa: B905  rows end
        done = 0
        while batch := list(islice(triples, self.batch_size)):
            values: list[Values | None] = [earlier for _, earlier in batch]
            missing = [index for index, value in enumerate(values) if value is None]
            for index, value in zip(missing, self._computed([batch[index][0] for index in missing]), strict=True):
                values[index] = value
            if self.progress is not None:
                self.progress.add(done, values, missing)
            done += len(batch)
            self._count(values)
            self.on_rows(done, self.summary.failed)
            empty = dict.fromkeys(self.functions)
            yield from ((row, empty | dict(value or {})) for ((row, _), _), value in zip(batch, values, strict=True))

    def _computed(self, pairs: Sequence[tuple[Row, Item]]) -> list[Values | None]:
        images: list[PILImage] = []
        texts: list[str] = []
        indices = []
        for index, (row, item) in enumerate(pairs):
            try:
                texts_of_row = _text(row, self.caption)
                frames = read_item(item, self.downloads).frames
                image = load_image(frames[len(frames) // 2])
            except (ItemError, ImageLoadError, OSError, ValueError, MemoryError) as error:
                if len(self.summary.problems) < _MAX_PROBLEMS:
                    self.summary.problems.append(f"{item.source}: {error}")
                continue
            images.append(image)
            texts.append(texts_of_row)
            indices.append(index)
        computed: list[dict[str, Any] | None] = [None] * len(pairs)
        for index in indices:
            computed[index] = {}
        for name, function in self.functions.items() if images else ():
            for index, value in zip(indices, function(images, texts), strict=True):
                computed[index] = {**(computed[index] or {}), name: _plain(name, value)}
        return list(computed)

    def _count(self, values: Sequence[Values | None]) -> None:
        done = [value for value in values if value is not None]
        self.summary.rows += len(done)
        self.summary.failed += len(values) - len(done)
        self.summary.scores += [value[MATCH] for value in done if MATCH in value]
        self.summary.contradicted += sum(bool(value.get(CONTRADICTIONS)) for value in done)


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON."""
    return float(value) if name == MATCH else [asdict(one) for one in value]


def _text(row: Row, column: str) -> str:
    """Return the caption of a row; of a list, also as JSON in a CSV cell, the first.

    Raises:
        ItemError: there is none.
    """
    value = row.get(column)
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return str(value)
    if isinstance(value, (list, tuple)):
        value = next(iter(value), None)
    if isinstance(value, str) and value.strip():
        return value
    error = row.get("error")
    raise ItemError(f"it has no caption, since it failed: {error}" if error else f"there is no {column!r}")
