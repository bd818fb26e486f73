"""`share4v chat`."""

from .command import HANDLERS, Argument, Command
from .common import GENERATION, JSON_LINES, MODEL

CHAT = Command(
    name="chat",
    handler=f"{HANDLERS}.chat:run",
    summary="ask about pictures, several turns",
    description="Ask about pictures, turn by turn. At a terminal type a question a line, /help for the commands. From "
    "a pipe every line is a question, and every answer is printed as one line.",
    groups=(
        (
            "what to talk about",
            (
                Argument(("images",), {"nargs": "+", "metavar": "IMAGE", "help": "path, URL or data URI"}),
                JSON_LINES,
            ),
        ),
        ("model", MODEL),
        ("generation", GENERATION),
    ),
    examples="""examples:
  share4v chat photo.jpg --model sharegpt4v-7b
  share4v chat before.jpg after.jpg --model sharegpt4v-7b --temperature 0.2
  printf 'What is this?\\nWhere is it?\\n' | share4v chat photo.jpg --json

exit status: 0 done, 1 a picture or an answer failed, 2 wrong use, 130 interrupted""",
)
