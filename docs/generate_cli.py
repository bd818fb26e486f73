"""Writes docs/cli.md from the parser of `share4v`: `python docs/generate_cli.py`. A test fails when it is stale."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from mindone_share4v.cli import build_parser

PAGE = Path(__file__).with_name("cli.md")
START = """# Command line

<!-- Written by docs/generate_cli.py from the parser; do not edit. -->

{description} `share4v COMMAND --help` says the same in a terminal.
"""
# What a test of the documentation cannot run of the examples: a pattern, and why.
NOT_RUN = {
    r"https?://": "needs the network",
    r"--engine ray": "needs a Ray cluster",
    r"caption-dataset clips": "needs videos of your own",
    r"^share4v score ": "needs references of your own, Java and a download for SPICE",
}
Subparsers = argparse._SubParsersAction


def page() -> str:
    """Return the whole page."""
    parser = build_parser()
    parts = [START.format(description=parser.description)]
    for name, command in commands_of(parser).items():
        parts += section(name, command)
    return "\n".join(parts).rstrip() + "\n"


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser, in order."""
    found = [action for action in parser._actions if isinstance(action, Subparsers)]
    return dict(found[0].choices) if found else {}


def section(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the parts of one command's section."""
    yield f"## share4v {name}\n"
    yield f"{prose(command.description or '')}\n"
    for group in command._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            yield f"| {group.title} | |\n|---|---|"
            yield from (row(action, command) for action in actions)
            yield ""
    yield from epilog(command.epilog or "")


def row(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    """Return one argument as a row of a table."""
    value = argument_value(action)
    if not action.option_strings:
        names = f"`{value}`"
    else:
        *short, last = action.option_strings
        names = ", ".join([*(f"`{flag}`" for flag in short), f"`{last} {value}`".replace(" `", "`")])
    help_text = (action.help or "") % {**vars(action), "prog": command.prog}
    required = " (required)" if action.required and action.option_strings else ""
    return f"| {names} | {prose(help_text).replace('|', chr(92) + '|')}{required} |"


def argument_value(action: argparse.Action) -> str:
    """Return how the value of an argument is written: `N`, `IMAGE...`, `{skip,overwrite}`."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        metavar = action.metavar or action.dest
        name = metavar if isinstance(metavar, str) else " ".join(metavar)
        name = name if action.metavar or not action.option_strings else name.upper()
    return {"+": f"{name}...", "*": f"[{name}...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def prose(text: str) -> str:
    """Return help text as Markdown: its angle brackets are no tags."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def epilog(text: str) -> Iterator[str]:
    """Yield the examples as blocks that are run, and the rest as it is."""
    for paragraph in filter(None, text.split("\n\n")):
        first, *lines = paragraph.split("\n")
        if not first.startswith("examples"):
            yield f"{prose(paragraph)}\n".replace("exit status:", "Exit status:")
            continue
        for reason, commands in groupby((line.strip() for line in lines), reason_not_to_run):
            marker = f"<!-- not run: {reason} -->\n\n" if reason else ""
            yield marker + "```bash\n" + "\n".join(commands) + "\n```\n"


def reason_not_to_run(line: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
