"""Entry point of `share4v`: parses the command line, imports and runs the command, and returns the exit status."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .arguments import COMMANDS
from .parser import HelpFormatter, Parser
from .signals import INTERRUPTED, exit_at_once, interrupted_message, signal_handler
from .status_line import STATUS

FAILED = 1  # exit status: an error in this program, or an output that cannot be written, as on a full disk
PIPE_CLOSED = 141  # exit status, as shells report SIGPIPE
_BUG = (
    "share4v: error: this is a bug in share4v. Please report it with the lines above, the command, and the output of "
    "`share4v env`"
)
# Errors without a file's name that writing to standard output raises.
_OF_STANDARD_OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT)
# Log level of MindSpore's C++ code: 3 is errors only, so that its warnings do not hide the captions.
ENVIRONMENT = {"GLOG_v": "3"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `share4v` and return its exit status.

    Args:
        argv: arguments without the program name; default: those of this process.

    Raises:
        SystemExit: from argparse, after --help and --version (status 0) and on a usage error (status 2).
    """
    open_missing_streams()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # File names may not be valid text, and the terminal's encoding may lack characters of a caption.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            status = _run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _write_error(interrupted_message())
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does: not an error.
        _discard_output()
        return PIPE_CLOSED
    except OSError as error:
        _discard_output()
        _write_error(f"share4v: error: {_place(error)}{error.strerror or error}")
        return FAILED
    except MemoryError as error:
        from .printing import memory_message

        _write_error(f"share4v: error: {memory_message(error)}")
        return FAILED
    except ImportError as error:  # an installation that lacks a package, or has another version of it
        _write_error(f"share4v: error: {error}; `share4v env` lists what is installed")
        return FAILED
    except Exception:  # an error in this program; the text of an exception may quote a file
        _write_error(f"{traceback.format_exc().rstrip()}\n{_BUG}")
        return FAILED
    return status


def _place(error: OSError) -> str:
    """Return what an error is about, as the start of a message."""
    if error.filename is not None:
        return f"{error.filename}: "
    return "cannot write to standard output: " if error.errno in _OF_STANDARD_OUTPUT else ""


def _run(argv: Sequence[str] | None) -> int:
    """Parse the command line, and import and run the command."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        Path.cwd()
    except FileNotFoundError:  # MindSpore cannot be imported there, so the message must not need it
        parser.exit(FAILED, "share4v: error: the current directory was deleted: change to another directory\n")
    with signal_handler(exit_at_once):
        if hasattr(COMMANDS[arguments.command], "STATUS"):
            STATUS.show(COMMANDS[arguments.command].STATUS)
        # Imported inside the signal handler: an installed mindone package may import MindSpore, which takes seconds.
        from .printing import filtered_messages

        with filtered_messages():
            command = import_module(f".commands.{arguments.command.replace('-', '_')}", __package__)
            try:
                status: int = command.run(arguments)
            finally:
                STATUS.clear()
    return status


def open_missing_streams() -> None:
    """Replace standard streams that were closed before the program started, as `share4v ... >&-` does.

    Otherwise Python sets them to None, and the next file that is opened gets their descriptor, so that a library could
    write its messages into that file. What is read from a replacement is empty; writing to it is an error, as it should
    be, except for standard error.
    """
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)  # the lowest one that is free: 0, 1 or 2
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))


def _write_error(text: str) -> None:
    from .printing import write_error  # not at the start: --help needs no library

    write_error(text)


def _discard_output() -> None:
    """Give stdout another target, so that Python does not report the same error again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; no command is imported for it."""
    parser = Parser(
        prog="share4v",
        description="Caption images and answer questions about them with ShareGPT4V on MindSpore.",
        epilog="examples:\n  share4v caption photo.jpg\n  share4v chat photo.jpg --model sharegpt4v-7b\n"
        "  share4v caption --help",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            usage=f"%(prog)s [OPTION]... {module.USAGE}".rstrip(),  # the help has the options, in groups
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
    return parser


class _Version(argparse.Action):
    """Prints the version; looks it up only when asked, since the lookup reads the installed packages' metadata."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        parser._print_message(f"share4v {version('mindone-share4v')}\n", sys.stdout)
        parser.exit()
