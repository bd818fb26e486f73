"""`share4v score`: score captions against references; prints a table or JSON."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from ..printing import one_line, print_error, print_json, print_text
from .common import usage_error
from .exit_status import DONE, SOME_FAILED

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.evaluation import CaptionFile, Scores

_SHOWN_KEYS = 5  # of images without a counterpart; the counts are always printed


def run(arguments: Namespace) -> int:
    """Score the captions, print the scores, and return the exit status."""
    from mindone.pipelines.image_to_text.evaluation import match, read_captions, score_captions

    try:
        keys, captions = _columns("key", arguments.key), _columns("caption", arguments.caption)
        predictions = read_captions(arguments.predictions, keys[0], captions[0])
        references = read_captions(arguments.references, keys[1], captions[1])
        pairs, matched_by = match(predictions, references)
        mismatches = _mismatches(predictions, references, pairs)
        with _stdout_to_stderr():
            scores = score_captions(
                {key: _only(predictions, key) for key in pairs},
                {key: references.captions[other] for key, other in pairs.items()},
                metrics=arguments.metric,
                tokenizer=arguments.tokenizer,
                download=not arguments.local_files_only,
            )
        if arguments.per_image is not None:
            _write_per_image(arguments.per_image, scores)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return usage_error(arguments, error)
    result = _result(scores, matched_by, mismatches)
    if arguments.json:
        print_json(result)
    else:
        print_text(_table(result))
    for what, found in mismatches.items():
        if found:
            print_error(f"{what.replace('_', ' ')}: {len(found)}, {one_line(_first_keys(found))}")
    for metric, reason in scores.not_computed.items():
        print_error(f"{metric} not computed: {one_line(reason)}")
    return SOME_FAILED if scores.not_computed or any(mismatches.values()) else DONE


def _columns(name: str, given: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the column names that a flag gives for the predictions and for the references.

    Raises:
        ValueError: the flag is given more than twice.
    """
    if len(given) > 2:
        raise ValueError(f"--{name} is given {len(given)} times: give it once for both files, or once for each")
    return (given[0], given[-1]) if given else (None, None)


def _only(predictions: CaptionFile, key: str) -> str:
    captions = predictions.captions[key]
    if len(captions) != 1:
        raise ValueError(
            f"{predictions.path}: {key!r} has {len(captions)} captions, but only one per image can be scored: "
            "keep one, or score each kind of caption from its own file"
        )
    return captions[0]


def _mismatches(predictions: CaptionFile, references: CaptionFile, pairs: Mapping[str, str]) -> dict[str, list[str]]:
    used = set(pairs.values())
    failed = set(predictions.failed)
    return {
        "references_without_a_caption": [key for key in references.captions if key not in used and key not in failed],
        "captions_without_a_reference": [key for key in predictions.captions if key not in pairs],
        "failed_predictions": [key for key in predictions.failed if key not in pairs],
    }


def _first_keys(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:_SHOWN_KEYS])
    return f"the first {_SHOWN_KEYS} are {shown}" if len(keys) > _SHOWN_KEYS else shown


def _result(scores: Scores, matched_by: str, mismatches: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "scores": dict(scores.scores),
        "not_computed": dict(scores.not_computed),
        "images": scores.images,
        "tokenizer": scores.tokenizer,
        "matched_by": matched_by,
        **{what: {"count": len(keys), "first": list(keys[:_SHOWN_KEYS])} for what, keys in mismatches.items()},
        "notes": list(scores.notes),
    }


def _table(result: Mapping[str, Any]) -> str:
    rows = [(name, f"{score:.4f}") for name, score in result["scores"].items()]
    rows += [(name, "not computed") for name in result["not_computed"]]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>12}" for name, value in rows]
    lines += ["", f"{result['images']:,} images, matched by {result['matched_by']}"]
    lines += [f"words: {result['tokenizer']}", *(f"note: {note}" for note in result["notes"])]
    return "\n".join(lines)


def _write_per_image(path: str, scores: Scores) -> None:
    from pathlib import Path

    from mindone.pipelines.image_to_text.dataset.state.atomic_files import atomic_write
    from mindone.pipelines.image_to_text.dataset.state.records import dumps

    with atomic_write(Path(path)) as file:
        for key, row in scores.per_image.items():
            file.write((dumps({"key": key, **row}) + "\n").encode())


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect standard output, so that what pycocoevalcap and its Java programs print does not mix with the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
