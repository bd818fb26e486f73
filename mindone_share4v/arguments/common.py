"""Arguments that several commands take."""

from __future__ import annotations

from .command import Argument

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
        {
            "help": "type of the weights in memory: float32, float16, bfloat16 (on an Ascend), int8 or int4 (on a CPU) "
            "(default: float32, or as stored)"
        },
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
