"""What the outputs of a job make of its records, for those who read the job's state and are not the job."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..prompts.caption_template import CAPTION, WHERE
from ..prompts.variables import variables_of
from ..state.bounded_reading import read_json
from ..state.paths import JOB, REVIEWS
from ..state.regular_files import own_exists
from ..state.reviews import Reviews
from ..state.signature import description_digest, is_job_signed
from .base import WriterOptions
from .finishing import Finisher, Wording


@dataclass(frozen=True)
class StoredFinisher:
    """A Finisher made from a state directory; close its `reviews` after use.

    Attributes:
        finisher: of the job's outputs.
        changes_failures: whether outputs may have other failures than the journal: by a review, a template or a budget.
        left_out: budgets that are not applied, with the reasons: their tokenizers are not on this machine, or the job
            is not this user's.
    """

    finisher: Finisher
    changes_failures: bool
    left_out: tuple[str, ...]


def stored_finisher(state: Path) -> StoredFinisher:
    """Return what makes output records from the journal's, as job.json says.

    Args:
        state: state directory of a job, which may be running, and need not be this user's. The tokenizers of budgets
            are opened only if it is: a stranger's job.json could name any file.

    Raises:
        ReviewError: (a ValueError) the reviews are damaged.
    """
    wording, left_out = _stored_wording(state)
    reviews = Reviews(state / REVIEWS)
    changes = bool(reviews.end) or wording.fails or _needs_values(wording)
    return StoredFinisher(Finisher(reviews, wording), changes, left_out)


def own_description(state: Path) -> dict[str, Any]:
    """Return what job.json says if this user's job wrote it; empty otherwise."""
    description = _description(state)
    return description if description and _is_own(state, description) else {}


def _stored_wording(state: Path) -> tuple[Wording, tuple[str, ...]]:
    description = _description(state)
    captions, sinks = description.get("captions"), description.get("sinks")
    on_fault = captions.get("on_fault", "keep") if isinstance(captions, dict) else "keep"
    try:
        options = WriterOptions(**sinks, on_fault=on_fault) if isinstance(sinks, dict) else WriterOptions()
    except (TypeError, ValueError, AttributeError) as error:  # of another version
        return Wording(), (f"the wording in {JOB} cannot be read ({error}), so captions are shown without it",)
    wording = options.wording
    if not options.has_budgets:
        return wording, ()
    if not _is_own(state, description):
        return _without_budgets(wording), ("captions are shown without the job's budgets: another user ran it",)
    try:
        wording.budgets()
    except (ValueError, OSError, ImportError) as error:
        return _without_budgets(wording), (f"captions are shown without the job's budgets: {error}",)
    return wording, ()


def _needs_values(wording: Wording) -> bool:
    """Return whether a template has variables that an input may lack."""
    templates = [one.template for one in (wording, *(one for _, one in wording.texts)) if one.template is not None]
    return any(variables_of(template, WHERE) - {CAPTION} for template in templates)


def _without_budgets(wording: Wording) -> Wording:
    texts = tuple((name, replace(one, fit=())) for name, one in wording.texts)
    return replace(wording, fit=(), texts=texts, fails=False)


def _is_own(state: Path, description: dict[str, Any]) -> bool:
    return is_job_signed(state, description_digest(description))


def _description(state: Path) -> dict[str, Any]:
    if own_exists(state / JOB):
        with suppress(ValueError):
            stored = read_json(state / JOB)
            return stored if isinstance(stored, dict) else {}
    return {}
