"""`share4v status`: print how far a caption-dataset job is."""

from __future__ import annotations

from argparse import Namespace

from ..printing import print_json
from .common import usage_error
from .exit_status import DONE


def run(arguments: Namespace) -> int:
    """Print the status as one line of JSON, and return the exit status."""
    from mindone.pipelines.image_to_text.dataset.report.status import job_status

    try:
        status = job_status(arguments.out)
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    print_json(status.to_json())
    return DONE
