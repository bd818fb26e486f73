"""`share4v report`: write an HTML page about a caption-dataset job."""

from __future__ import annotations

from argparse import Namespace

from ..printing import one_line, print_text
from .common import usage_error
from .exit_status import DONE


def run(arguments: Namespace) -> int:
    """Write the page, print its path and a summary, and return the exit status."""
    from mindone.pipelines.image_to_text.dataset.report.report import write_report

    try:
        path, summary = write_report(arguments.out, arguments.html, trigger=arguments.trigger)
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    captions = f"{summary.captions:,} captions, {summary.failed:,} failed, {summary.repetitive:,} repetitive"
    print_text(one_line(f"{path}: {captions}"))
    return DONE
