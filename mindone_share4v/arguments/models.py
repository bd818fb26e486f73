"""Arguments of `share4v models`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "list the models, and which of them are on this machine"
USAGE = ""
DESCRIPTION = (
    "List the models that can be named: their size, where they come from, and whether they are on this machine. "
    "Repositories that were downloaded from the Hugging Face hub by owner/name are listed too. Nothing is downloaded. "
    "A directory of your own is not listed; give its path to --model."
)
EPILOG = """examples:
  share4v models
  share4v models --json
  share4v models --remove sharegpt4v-7b

exit status: 0 success, 2 a model to remove is not in the download cache"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="NAME",
        help="delete this download, complete or not; can be repeated",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where downloaded files are stored (default: $SHARE4V_HOME, or ~/.cache/share4v)",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object per line")
