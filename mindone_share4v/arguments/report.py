"""Arguments of `share4v report`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "show the results of caption-dataset as an HTML page"
USAGE = "OUT"
DESCRIPTION = (
    "Write one HTML page about a caption-dataset job, finished or still running: counts, failures by reason, caption "
    "lengths, speed, the most frequent words, phrases and openings, repetitive captions, duplicate and near-duplicate "
    "captions, and a sample of images with their captions. The page is self-contained and loads nothing from the "
    "network."
)
EPILOG = """examples:
  share4v report photos
  share4v report captions.jsonl --html report.html

exit status: 0 success, 2 no such job, or a package is missing (pip install 'mindone-share4v[report]')"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    group = parser.add_argument_group("job and output")
    group.add_argument(
        "out",
        metavar="OUT",
        help="the --out or --state of the caption-dataset job, or the folder that it captioned",
    )
    group.add_argument(
        "--html",
        metavar="FILE",
        help="page to write (default: report.html beside the job's journal)",
    )
    group.add_argument(
        "--trigger",
        metavar="WORD",
        help="word or phrase that every caption should have; the page shows where it is not",
    )
