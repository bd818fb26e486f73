"""The commands of `share4v` as data: adding a command is adding a row."""

from __future__ import annotations

from typing import Any, NamedTuple

HANDLERS = "mindone.pipelines.image_to_text.commands"


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


MODEL = (
    Argument(
        ("--model",),
        {
            "metavar": "NAME",
            "default": "sharegpt4v-tiny",
            "help": "sharegpt4v-tiny, sharegpt4v-7b, sharegpt4v-13b, a directory, or owner/name on the Hugging Face "
            "hub (default: %(default)s, which comes with the package and knows drawn scenes alone)",
        },
    ),
    Argument(
        ("--vision-tower",),
        {"metavar": "NAME", "help": "directory or name of the vision tower (default: what the model's config says)"},
    ),
    Argument(
        ("--dtype",),
        {"help": "type of the weights in memory: float32, float16, int8, int4 (default: float32, or as stored)"},
    ),
    Argument(
        ("--kv-cache-dtype",),
        {"help": "type of cached keys and values: float32, float16 or int8 (default: by --dtype)"},
    ),
    Argument(
        ("--conversation",),
        {"metavar": "TEMPLATE", "help": "conversation template (default: the checkpoint's, else vicuna_v1)"},
    ),
    Argument(("--cache-dir",), {"metavar": "DIR", "help": "where downloads are kept (default: $SHARE4V_HOME)"}),
    Argument(("--local-files-only",), {"action": "store_true", "help": "open no connection for the model"}),
)

GENERATION = (
    Argument(
        ("--max-new-tokens",),
        {"type": int, "default": 256, "metavar": "N", "help": "most tokens (default: %(default)s)"},
    ),
    Argument(("--min-new-tokens",), {"type": int, "default": 0, "metavar": "N", "help": "fewest tokens (default: 0)"}),
    Argument(
        ("--temperature",),
        {"type": float, "default": 0.0, "metavar": "T", "help": "above 0 turns sampling on (default: 0, greedy)"},
    ),
    Argument(("--top-p",), {"type": float, "metavar": "P", "help": "sample from the most probable share P"}),
    Argument(("--top-k",), {"type": int, "metavar": "K", "help": "sample from the K most probable tokens"}),
    Argument(
        ("--repetition-penalty",),
        {"type": float, "default": 1.0, "metavar": "R", "help": "above 1 discourages repeating (default: 1)"},
    ),
    Argument(
        ("--stop",),
        {"action": "append", "default": [], "metavar": "TEXT", "help": "end where TEXT would begin; may be repeated"},
    ),
    Argument(("--seed",), {"type": int, "metavar": "N", "help": "of the sampling, for the same result again"}),
)

JSON_LINES = Argument(("--json",), {"action": "store_true", "help": "print one JSON object a line"})

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

CONVERT = Command(
    name="convert",
    handler=f"{HANDLERS}.convert:run",
    summary="write a checkpoint in this project's form",
    description="Write a checkpoint of any published form (the original's .bin shards, LLaVA's, the earlier port's "
    ".ckpt) as one directory of safetensors that holds the vision tower, the tokenizer and all configs. Nothing needs "
    "it: every form can be loaded as it is.",
    groups=(
        (
            "what to convert",
            (
                Argument(("source",), {"metavar": "SRC", "help": "directory, known name, or owner/name on a hub"}),
                Argument(("--out",), {"metavar": "DIR", "required": True, "help": "new or empty directory to write"}),
                Argument(
                    ("--vision-tower",),
                    {"metavar": "DIR", "help": "directory or name of the vision tower (default: what the config says)"},
                ),
                Argument(
                    ("--dtype",),
                    {
                        "choices": ("float32", "float16", "int8", "int4"),
                        "help": "type to write (default: as stored; bfloat16 as float32); int8 and int4 are for CPUs",
                    },
                ),
                Argument(("--cache-dir",), {"metavar": "DIR", "help": "where downloads are kept"}),
                Argument(("--local-files-only",), {"action": "store_true", "help": "open no connection"}),
            ),
        ),
    ),
    examples="""examples:
  share4v convert ShareGPT4V-7B --vision-tower ShareGPT4V-7B_Pretrained_vit-large336-l12 --out sharegpt4v-7b-ms
  share4v convert Lin-Chen/ShareGPT4V-7B --out sharegpt4v-7b-int4 --dtype int4

exit status: 0 done, 2 the source or the directory will not do, 130 interrupted""",
    unwinds=True,  # the directory that is being written
)

COMMANDS = (CAPTION, CHAT, CONVERT)
