"""Arguments of `share4v status`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "print how far a caption-dataset job is, as JSON"
USAGE = "OUT"
DESCRIPTION = (
    "Print one line of JSON about a caption-dataset job, while it runs or after: `state` (running, finished, or "
    "stopped, which the same caption-dataset command resumes), `done` and `total` inputs, `failed` and `failures` by "
    "reason, `rate` (inputs per second in the last ten minutes of work) and `seconds_left`. The job is not disturbed."
)
EPILOG = """examples:
  share4v status captions.jsonl
  share4v status photos

exit status: 0 success, 2 no such job, or its journal is damaged"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    parser.add_argument_group("job").add_argument(
        "out",
        metavar="OUT",
        help="the --out or --state of the caption-dataset job, or the folder that it captioned",
    )
