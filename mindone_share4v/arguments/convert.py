"""`share4v convert`."""

from .command import HANDLERS, Argument, Command

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
                        "choices": ("float32", "float16", "bfloat16", "int8", "int4"),
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
