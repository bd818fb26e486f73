"""`share4v match`: add CLIP's score of each row, and words that a model does not agree with, to a table."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any

from ..printing import one_line, print_error, print_json, print_text
from ..signals import INTERRUPTED, raise_interrupt, signal_handler
from .common import model_options, usage_error, with_flags
from .exit_status import DONE, SOME_FAILED

if TYPE_CHECKING:
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.evaluation.match_table import Check, MatchSummary, Score

_SHOWN_PROBLEMS = 5
_FILE_ARGUMENTS = ("out", "image_column", "caption_column", "image_root", "encoding", "overwrite", "retry_failed")


def run(arguments: Namespace) -> int:
    """Score the rows, print a summary, and return the exit status."""
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.dataset.keywords import download_options
    from mindone.pipelines.image_to_text.evaluation.match_table import add_match, check_match

    progress = _Progress(tqdm(unit="row", dynamic_ncols=True, disable=not sys.stderr.isatty()))
    try:
        if arguments.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
        if arguments.overwrite and arguments.retry_failed:
            raise ValueError("--overwrite and --retry-failed cannot be combined: leave one out")
        if not arguments.clip and not arguments.verify:
            raise ValueError("there is nothing to add to the table: give --clip DIR, --verify or both")
        files: dict[str, Any] = {name: getattr(arguments, name) for name in _FILE_ARGUMENTS}
        check_match(arguments.table, **files)  # before a model is loaded
        with progress.bar, signal_handler(raise_interrupt):
            summary = add_match(
                arguments.table,
                _score(arguments),
                _check(arguments),
                **files,
                batch_size=arguments.batch_size,
                downloads=download_options(vars(arguments)),
                resume=_functions(arguments),
                on_rows=progress.on_rows,
            )
    except KeyboardInterrupt:
        print_error("interrupted; the same command continues after the scores that were computed")
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        return usage_error(arguments, error)
    result = _result(summary)
    if arguments.json:
        print_json(result)
    else:
        shown = ", ".join(f"{name} {result[name]}" for name in ("min", "quarter", "median", "max") if name in result)
        scores = f"{len(summary.scores):,} scores" + (f" ({shown})" if shown else "")
        parts = [f"{summary.rows:,} rows"]
        parts += [scores] if arguments.clip else []
        parts += [f"{summary.contradicted:,} with contradictions"] if arguments.verify else []
        parts += [f"{summary.resumed:,} of an interrupted command"] if summary.resumed else []
        print_text(one_line(f"{summary.path}: {', '.join(parts)}; {summary.failed:,} rows failed"))
    for problem in summary.problems[:_SHOWN_PROBLEMS]:
        print_error(one_line(with_flags(arguments, problem)))
    if summary.failed:
        print_error("the same command with --retry-failed tries only the rows that failed again")
    return SOME_FAILED if summary.failed else DONE


class _Progress:
    """A bar on a terminal, otherwise a line every minute."""

    LINE_SECONDS = 60.0

    def __init__(self, bar: tqdm[Any]) -> None:
        self.bar, self._last_line = bar, time.monotonic()

    def on_rows(self, rows: int, failed: int) -> None:
        """Called after every batch."""
        self.bar.update(rows - self.bar.n)
        if self.bar.disable and time.monotonic() - self._last_line >= self.LINE_SECONDS:
            self._last_line = time.monotonic()
            print_error(f"{rows:,} rows, {failed:,} of them failed")


def _functions(arguments: Namespace) -> dict[str, Any]:
    """Return what computes the columns; scores of an interrupted command with anything else are not continued."""
    clip = Path(arguments.clip) if arguments.clip else None
    files = sorted(clip.iterdir()) if clip is not None and clip.is_dir() else []
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    from mindone.pipelines.image_to_text.dataset.options import WITHOUT_EFFECT

    options = {name: value for name, value in model_options(arguments).items() if name not in WITHOUT_EFFECT}
    model = {name: str(value) for name, value in sorted(options.items())} if arguments.verify else {}
    return {"clip": None if clip is None else [str(clip.absolute()), states], "model": model}


def _score(arguments: Namespace) -> Score | None:
    if not arguments.clip:
        return None
    from mindone.pipelines.image_to_text.evaluation.clip_score import ClipScorer

    return ClipScorer(arguments.clip).scores


def _check(arguments: Namespace) -> Check | None:
    if not arguments.verify:
        return None
    from mindone.pipelines import pipeline
    from mindone.pipelines.image_to_text.evaluation.verify import Verifier

    return Verifier(pipeline("image-to-text", **model_options(arguments))).check


def _result(summary: MatchSummary) -> dict[str, Any]:
    scores = summary.scores
    result: dict[str, Any] = {
        "out": str(summary.path),
        "rows": summary.rows,
        "scores": len(scores),
        "contradicted": summary.contradicted,
        "failed": summary.failed,
    }
    if scores:
        quarter, median, _ = quantiles(scores, n=4) if len(scores) > 1 else (scores[0],) * 3
        values = {"min": min(scores), "quarter": quarter, "median": median, "max": max(scores), "mean": fmean(scores)}
        result |= {name: round(value, 4) for name, value in values.items()}
    return result
