"""Arguments of `share4v completion`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "print a script that completes commands in a shell"
USAGE = "SHELL"
DESCRIPTION = (
    "Print a script with which a shell completes commands, options and their values when Tab is pressed. For bash, add "
    "`source <(share4v completion bash)` to ~/.bashrc. For zsh, write the script to a file named _share4v in a "
    "directory of $fpath. For fish, write it to ~/.config/fish/completions/share4v.fish."
)
EPILOG = """examples:
  share4v completion bash > share4v.bash
  share4v completion zsh > _share4v
  share4v completion fish > share4v.fish

exit status: 0 success"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    group = parser.add_argument_group("shell")
    group.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
