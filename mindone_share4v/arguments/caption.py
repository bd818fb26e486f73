"""`share4v caption`."""

from .command import HANDLERS, Argument, Command
from .common import GENERATION, JSON_LINES, MODEL

CAPTION = Command(
    name="caption",
    handler=f"{HANDLERS}.caption:run",
    summary="caption pictures",
    description="Caption pictures. To a terminal a caption is shown while it is made. To a pipe go plain lines: the "
    "caption of one picture, or `path<TAB>caption` for each of several; line ends and tabs inside a caption become "
    "spaces (--json keeps them). A picture that cannot be read is named on standard error, and the others are "
    "captioned.",
    groups=(
        (
            "what to caption",
            (
                Argument(
                    ("images",),
                    {
                        "nargs": "+",
                        "metavar": "IMAGE",
                        "help": "path, URL or data URI; - reads a picture from standard input",
                    },
                ),
                Argument(("--prompt",), {"metavar": "TEXT", "help": "question (default: Describe this image)"}),
                JSON_LINES,
            ),
        ),
        ("model", MODEL),
        (
            "generation",
            (
                *GENERATION,
                Argument(
                    ("--num-beams",),
                    {"type": int, "default": 1, "metavar": "N", "help": "beams to search with (default: 1)"},
                ),
                Argument(
                    ("--batch-size",),
                    {"type": int, "default": 1, "metavar": "N", "help": "pictures at once (default: 1)"},
                ),
            ),
        ),
    ),
    examples="""examples:
  share4v caption photo.jpg
  share4v caption photos/*.jpg --model sharegpt4v-7b --json > captions.jsonl
  share4v caption photo.jpg --prompt "What is written on the sign?"
  curl -s https://example.org/photo.jpg | share4v caption -

exit status: 0 done, 1 some pictures failed, 2 wrong use, 130 interrupted""",
)
