"""The parsers of `share4v`: one module for each command, which imports nothing but argparse.

A module has HELP (one line of `share4v --help`), USAGE (what must be given), DESCRIPTION, EPILOG (examples and exit
status) and `add_arguments(parser)`. A command that takes long to start also has STATUS, which a terminal shows at once.
What a command does is in the module of the same name in `mindone_share4v.commands`. To add a command, write both
modules and add a line to COMMANDS.
"""

from . import (
    audit,
    caption,
    caption_dataset,
    chat,
    completion,
    convert,
    env,
    match,
    models,
    report,
    review,
    score,
    serve,
    status,
)

__all__ = ["COMMANDS"]

COMMANDS = {
    "caption": caption,
    "caption-dataset": caption_dataset,
    "chat": chat,
    "convert": convert,
    "report": report,
    "audit": audit,
    "review": review,
    "status": status,
    "score": score,
    "match": match,
    "serve": serve,
    "models": models,
    "env": env,
    "completion": completion,
}
