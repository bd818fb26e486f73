"""Arguments of `share4v env`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "describe the installation, for a bug report"
USAGE = ""
DESCRIPTION = (
    "Describe the installation: versions of the packages, what is not installed, the CPU and the instruction set that "
    "the kernels use, whether the kernels were built, and if not, why, and the environment variables that have an "
    "effect. Passwords in URLs are left out. It works where MindSpore cannot be imported, and says why it cannot."
)
EPILOG = """examples:
  share4v env
  share4v env --json

exit status: 0 success"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object")
