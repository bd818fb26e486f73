"""The command line: parses, imports what the command needs, runs it, and turns interruptions into exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .arguments import COMMANDS
from .signals import INTERRUPTED, leave, message, on_interruption, unwind

PIPE_CLOSED = 141  # as shells count SIGPIPE
# MindSpore's C++ side logs from this level on: 3 leaves errors, and its warnings do not bury a caption.
ENVIRONMENT = {"GLOG_v": "3"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `share4v` and return its exit status.

    Args:
        argv: the arguments after the program's name, by default those of the process.

    Raises:
        SystemExit: argparse's, for --help, --version (0) and wrong use (2).
    """
    arguments = build_parser().parse_args(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text, a terminal's encoding small
    try:
        with on_interruption(leave):
            module, _, function = arguments.handler.partition(":")
            run = getattr(import_module(module), function)
            with on_interruption(unwind if arguments.unwinds else leave):
                status: int = run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(message(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has gone, which is no error of ours; Python must not find out again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; nothing is imported for it."""
    parser = argparse.ArgumentParser(
        prog="share4v",
        description="Captions of pictures, and answers about them, by ShareGPT4V on MindSpore.",
        epilog="examples:\n  share4v caption photo.jpg\n  share4v chat photo.jpg --model sharegpt4v-7b\n"
        "  share4v caption --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=command.examples,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        own.set_defaults(handler=command.handler, unwinds=command.unwinds)
        for title, arguments in command.groups:
            group = own.add_argument_group(title)
            for argument in arguments:
                group.add_argument(*argument.flags, **argument.options)
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills the description, and leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print("share4v", version("mindone-share4v"))
        parser.exit()
