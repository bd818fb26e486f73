"""Entry point of `share4v`: parses the command line, imports and runs the command, and returns the exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from .arguments import COMMANDS
from .signals import INTERRUPTED, exit_at_once, interrupted_message, signal_handler

FAILED = 1  # exit status, as of Python after an uncaught exception
PIPE_CLOSED = 141  # exit status, as shells report SIGPIPE
# Log level of MindSpore's C++ code: 3 is errors only, so that its warnings do not hide the captions.
ENVIRONMENT = {"GLOG_v": "3"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `share4v` and return its exit status.

    Args:
        argv: arguments without the program name; default: those of this process.

    Raises:
        SystemExit: from argparse, after --help and --version (status 0) and on a usage error (status 2).
    """
    arguments = build_parser().parse_args(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # File names may not be valid text, and the terminal's encoding may lack characters of a caption.
            stream.reconfigure(errors="backslashreplace")
    try:
        with signal_handler(exit_at_once):
            status = _run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _write_error(interrupted_message())
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does: not an error. Without a new target for stdout, Python would
        # report the closed pipe again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception:  # an error in this program; the text of an exception may quote a file
        _write_error(traceback.format_exc().rstrip())
        return FAILED
    return status


def _run(arguments: argparse.Namespace) -> int:
    # Imported inside the signal handler: an installed mindone package may import MindSpore, which takes seconds.
    from .printing import filtered_messages

    with filtered_messages():
        command = import_module(f".commands.{arguments.command.replace('-', '_')}", __package__)
        status: int = command.run(arguments)
    return status


def _write_error(text: str) -> None:
    from .printing import write_error

    write_error(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; no command is imported for it."""
    parser = _Parser(
        prog="share4v",
        description="Caption images and answer questions about them with ShareGPT4V on MindSpore.",
        epilog="examples:\n  share4v caption photo.jpg\n  share4v chat photo.jpg --model sharegpt4v-7b\n"
        "  share4v caption --help",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            usage=f"%(prog)s [OPTION]... {module.USAGE}",  # the help has the options, in groups
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
    return parser


class _Parser(argparse.ArgumentParser):
    """Filters its errors, which quote arguments: a shell may have expanded a file's name to one."""

    def error(self, message: str) -> NoReturn:
        if not message.isprintable() or "://" in message:  # imported only then, since a usage error should be fast
            from mindone.models.share4v.display import printable, redacted

            message = printable(redacted(message))
        super().error(message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the description, keeps the line breaks of the examples, and leaves room for the longest usual flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class _Version(argparse.Action):
    """Prints the version; looks it up only when asked, since the lookup reads the installed packages' metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        parser._print_message(f"share4v {version('mindone-share4v')}\n", sys.stdout)
        parser.exit()
