"""argparse with errors on one line, in the words of the command line, and with the closest known name."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# Messages of argparse -> ours; the first pattern that matches is used.
_REWORDED = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"argument ([^:]+): invalid int value: (.*)", r"{0} must be a whole number, got {1}"),
        (r"argument ([^:]+): invalid float value: (.*)", r"{0} must be a number, got {1}"),
        (r"argument ([^:]+): (must be .*)", r"{0} {1}"),
        (r"argument ([^:]+): expected (?:one|at least one) argument", r"{0} needs a value"),
        (r"argument ([^:]+): ignored explicit argument (.*)", r"{0} takes no value, got {1}"),
        (r"the following arguments are required: (.*)", r"{0} is missing"),
    )
)
# Options that other captioners and Hugging Face's scripts have -> what to do here.
_OTHERS = {
    "--recursive": "subfolders are always captioned too; --exclude leaves some out",
    "--caption-extension": "choose with --format txt or --format caption",
    "--caption-extention": "choose with --format txt or --format caption",
    "--image-dir": "give the folder without an option",
    "--input": "give the inputs without an option",
    "--input-dir": "give the folder without an option",
    "--train-data-dir": "give the folder without an option",
    "--output-dir": "use --out",
    "--device": "the model runs on MindSpore's device",
    "--gpu": "the model runs on MindSpore's device",
    "--load-in-4bit": "use --dtype int4",
    "--load-in-8bit": "use --dtype int8",
    "--mixed-precision": "use --dtype",
    "--precision": "use --dtype",
    "--max-length": "use --max-new-tokens, which does not count the prompt",
    "--beam-search": "use --num-beams",
}
_MISSING = "the following arguments are required"

GIVEN = "given"  # a parser with a default of this name puts the names of the given arguments there


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line each; the subparsers that it makes are too."""

    _given: Sequence[str] = ()  # the arguments that are being parsed

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments; an unknown one is an error of the command that got it, which knows its options."""
        self._given = list(sys.argv[1:] if args is None else args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if GIVEN in self._defaults:
            setattr(parsed, GIVEN, self._given_names(args))
        if unknown:
            name = unknown[0].partition("=")[0]
            if name.startswith("-") and len(name) > 1:
                self.error(self._unknown_option(name))
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed, unknown

    def _given_names(self, args: Sequence[str] | None) -> frozenset[str]:
        """Return the names of the arguments that are given, rather than left at their defaults."""
        before, defaults = dict(self._defaults), [(action, action.default) for action in self._actions]
        self._defaults.clear()
        for action in self._actions:
            action.default = argparse.SUPPRESS
        try:
            found, _ = argparse.ArgumentParser.parse_known_args(self, args, argparse.Namespace())
        finally:
            self._defaults.update(before)
            for action, default in defaults:
                action.default = default
        return frozenset(vars(found))

    def _unknown_option(self, name: str) -> str:
        usual = name.replace("_", "-")
        if usual in _OTHERS and usual not in self._option_string_actions:
            return f"unknown option {name}: {_OTHERS[usual]}"
        return f"unknown option {name}{_hint(usual, self._option_string_actions, '{}')}"

    def _mistyped(self) -> str | None:
        """Return the message about the first option that does not exist, or None."""
        for argument in self._given:
            name = argument.partition("=")[0]
            if name == "--":
                return None
            if name.startswith("--") and name not in self._option_string_actions:
                return self._unknown_option(name)
        return None

    def error(self, message: str) -> NoReturn:
        """Print the error and where help is, and exit with status 2."""
        if message.startswith(_MISSING):  # argparse notices that before a mistyped option
            message = self._mistyped() or message
        for pattern, text in _REWORDED:
            found = pattern.fullmatch(message)
            if found:
                message = text.format(*found.groups())
                break
        # A shell may have expanded a file's name. Imported only then, since a usage error should be fast.
        if not message.isprintable() or "://" in message:
            from mindone.models.share4v.display import printable, redacted

            message = printable(redacted(message))
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: error: {message}{end} See {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            if "." in value or "/" in value:  # a file or a URL
                raise argparse.ArgumentError(None, f"{value!r} is no command; to caption it: share4v caption {value}")
            raise argparse.ArgumentError(None, f"unknown command {value!r}{_hint(value, action.choices)}")
        names = ", ".join(map(str, action.choices))
        text = f"{'/'.join(action.option_strings) or action.metavar} must be one of {names}, got {value!r}"
        raise argparse.ArgumentError(None, text + _hint(str(value), map(str, action.choices)))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or an error; argparse itself ignores that a disk is full."""
        if message:
            (file or sys.stderr).write(message)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the description, keeps the line breaks of the examples, and leaves room for the longest usual flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def _hint(name: str, known: Iterable[str], quote: str = "{!r}") -> str:
    from difflib import get_close_matches  # only for errors

    close = get_close_matches(name, list(known), n=1)
    return f". Did you mean {quote.format(close[0])}?" if close else ""
