"""Publishing: the job's own writers bring the outputs up to date with the reviews."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ..job import JobState
from ..state.journal import Journal, write_failed
from ..state.paths import FAILED, JOURNAL, REVIEWS, TOKEN_COUNTS
from ..state.resume import is_complete
from ..state.reviews import Reviews
from ..state.token_counts import TokenCounts
from ..writers import Finisher, WriterOptions, open_writer


def publish(state: Path) -> list[str] | None:
    """Write the reviewed captions to all outputs of a finished job, and return what was left out, and why.

    The outputs of a job that is not finished follow when it is run to its end; None is returned then.

    Args:
        state: the job's state directory.

    Raises:
        JobError: the job is running: it publishes the reviews itself when it ends; or its state or job.json is
            not signed.
        ValueError: an output cannot be written.
        OSError: as ValueError; what is on disk remains valid.
    """
    with JobState(state) as entered:
        if not is_complete(state):
            return None
        description = entered.signed_description()
        on_fault = description["captions"].get("on_fault", "keep")
        options, left_out = WriterOptions(**description["sinks"], on_fault=on_fault), []
        for name in description["formats"]:
            writer = open_writer(name, description["out"], options, state)
            if not writer.is_current:  # a caption file that a person deleted is not restored without need
                writer.finish()
                left_out += writer.left_out
        with Journal(state / JOURNAL) as journal, closing(Reviews(state / REVIEWS)) as reviews:
            finisher = Finisher(reviews, options.wording)
            counts = TokenCounts()
            write_failed(journal, state / FAILED, reviewed=finisher.counting(counts))
            counts.write(state / TOKEN_COUNTS)
    return left_out
