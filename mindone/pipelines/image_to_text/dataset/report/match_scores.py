"""Scores of `share4v match` beside a job's outputs, for its report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..readers import InputError, ReaderOptions, list_inputs
from ..writers import WRITERS, WriterRow

# Format -> its column of images, where that has another name than such columns usually have.
_IMAGE_COLUMNS = {"jsonl": "source", "json": "source", "parquet": "source"}
COLUMN = "match"  # of the tables that `share4v match` writes; Open-Sora's own tool writes the same name
PARTS = "captions_match.parquet"  # what it writes of a folder of Parquet parts


@dataclass
class MatchScores:
    """The scores in one table.

    Attributes:
        path: the table.
        counts: score, rounded down -> number of rows.
        total: sum of the scores.
        missing: number of rows without a score.
        is_older: whether the job wrote its output after the scores.
    """

    path: Path
    counts: Counter[int] = field(default_factory=Counter)
    total: float = 0.0
    missing: int = 0
    is_older: bool = False

    @property
    def mean(self) -> float:
        """Mean of the scores; NaN if there are none."""
        count = self.counts.total()
        return self.total / count if count else math.nan


def read_match_scores(description: Mapping[str, Any]) -> MatchScores | None:
    """Return the scores of a job's outputs; None if there are none.

    Args:
        description: contents of job.json, of a job of this user: `out` in it names the files.
    """
    for format, output, table in _tables(description):
        if table.is_file():
            scores = MatchScores(table, is_older=output.exists() and output.stat().st_mtime > table.stat().st_mtime)
            # A table that something else damaged has no scores to show, and is no reason to have no report.
            with suppress(InputError, OSError, ValueError):
                for item in list_inputs([str(table)], ReaderOptions(image_column=_IMAGE_COLUMNS.get(format))):
                    _add(scores, item.columns.get(COLUMN))
            if scores.counts:
                return scores
    return None


def _add(scores: MatchScores, value: Any) -> None:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isfinite(score):
        scores.counts[math.floor(score)] += 1
        scores.total += score
    else:
        scores.missing += 1


def match_table(output: Path) -> Path:
    """Return the table that `share4v match` writes of another one, or of a folder of Parquet parts."""
    return output / PARTS if output.is_dir() else output.with_name(f"{output.stem}_match{output.suffix}")


def _tables(description: Mapping[str, Any]) -> Iterator[tuple[str, Path, Path]]:
    """Yield the formats of a job that are tables, their outputs, and where the scores of these would be."""
    out, formats = description.get("out"), description.get("formats")
    if not isinstance(out, str) or not isinstance(formats, list):
        return
    for row in (WRITERS[name] for name in formats if name in WRITERS):
        output = _table_of(row, Path(out))
        if output is not None:
            yield row.name, output, match_table(output)


def _table_of(row: WriterRow, out: Path) -> Path | None:
    """Return the table, or the folder of its parts, that a format writes to `out`; None for another kind of output."""
    if row.suffix and not out.is_dir():
        return out
    return out / row.file_name if row.file_name else out if row.suffix else None
