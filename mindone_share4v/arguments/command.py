"""What a row of the table of commands is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

HANDLERS = "mindone_share4v.commands"


class Argument(NamedTuple):
    """One argument: its flags (or the name of a positional one) and argparse's options for it."""

    flags: tuple[str, ...]
    options: dict[str, Any]


class Command(NamedTuple):
    """One command.

    `handler` is "module:function"; it takes the parsed arguments and returns the exit status. `groups` are titles of
    the help text with their arguments. `unwinds` is True where an interruption must put something in order first.
    """

    name: str
    handler: str
    summary: str
    description: str
    groups: tuple[tuple[str, tuple[Argument, ...]], ...]
    examples: str
    unwinds: bool = False
