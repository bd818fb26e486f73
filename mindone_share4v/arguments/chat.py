"""Arguments of `share4v chat`."""

from __future__ import annotations

from argparse import ArgumentParser

from .common import add_generation_arguments, add_json_argument, add_model_arguments, add_pixels_argument

HELP = "ask questions about images"
STATUS = "starting MindSpore"
USAGE = "IMAGE..."
DESCRIPTION = (
    "Ask questions about one or more images; the model sees the earlier questions and answers. On a terminal, type one "
    "question per line, or /help for the chat's own commands. Otherwise every line of standard input is a question, "
    "and each answer is printed on one line."
)
EPILOG = """examples:
  share4v chat photo.jpg --model sharegpt4v-7b
  share4v chat before.jpg after.jpg --model sharegpt4v-7b --temperature 0.2
  printf 'What is this?\\nWhere is it?\\n' | share4v chat photo.jpg --json

exit status: 0 success, 1 an image or an answer failed, 2 usage error, 130 interrupted"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    images = parser.add_argument_group("images and output")
    images.add_argument("images", nargs="+", metavar="IMAGE", help="path, URL or data URI of an image")
    add_pixels_argument(images)
    add_json_argument(images)
    images.add_argument(
        "--no-history",
        action="store_true",
        help="do not read or write the questions of earlier chats, which the arrow keys recall on a terminal; they are "
        "in chat_history in SHARE4V_HOME (by default ~/.cache/share4v)",
    )
    add_model_arguments(parser)
    add_generation_arguments(parser)
