"""Arguments of `share4v review`."""

from __future__ import annotations

from argparse import ArgumentParser

from .common import add_model_arguments
from .serve import add_network_arguments

HELP = "review and edit the captions of caption-dataset in a browser"
USAGE = "OUT"
DESCRIPTION = (
    "Serve a web page with the images and captions of a caption-dataset job, finished or still running: find captions "
    "by length, broken rules, failures, duplicates or text; edit, accept and reject them; replace text in many; undo. "
    "With --model, generate captions again with another style or prompt. Every change is on disk before the page shows "
    "it, in a file of its own that no later run of the job overwrites. The outputs follow a few seconds later, or "
    "when the job ends. Ctrl-C or SIGTERM ends the server."
)
EPILOG = """examples:
  share4v review photos
  share4v review captions.jsonl --model sharegpt4v-7b --dtype int4

exit status: 0 ended by a signal (if the job is not finished, it writes the outputs later), 1 the model failed, or an
output could not be written or lacks a caption, 2 usage error, no such job, or the port is in use"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    group = parser.add_argument_group("job")
    group.add_argument(
        "out",
        metavar="OUT",
        help="the --out or --state of the caption-dataset job, or the folder that it captioned",
    )
    add_model_arguments(parser, is_optional=True)
    add_network_arguments(parser)
