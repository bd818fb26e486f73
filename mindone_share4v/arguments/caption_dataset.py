"""`share4v caption-dataset`."""

from .command import HANDLERS, Argument, Command
from .common import GENERATION, MODEL

INPUTS = (
    Argument(
        ("inputs",),
        {
            "nargs": "*",
            "metavar": "INPUT",
            "help": "folder, picture, video, list (.txt), table (.json, .jsonl, .csv, .tsv, .parquet), WebDataset "
            "shards (.tar, braces as in shard-{0000..0012}.tar), or a Hugging Face data set's directory",
        },
    ),
    Argument(
        ("--include",), {"action": "append", "default": [], "metavar": "GLOB", "help": "of a folder, take these alone"}
    ),
    Argument(
        ("--exclude",), {"action": "append", "default": [], "metavar": "GLOB", "help": "of a folder, leave these"}
    ),
    Argument(
        ("--image-column",), {"metavar": "NAME", "help": "of a table, the column with path or bytes (default: guessed)"}
    ),
    Argument(("--caption-column",), {"metavar": "NAME", "help": "of a table, the column with an existing caption"}),
    Argument(
        ("--key-column",),
        {"metavar": "NAME", "help": "of a table, the column that names records (default: path or row)"},
    ),
    Argument(
        ("--image-root",),
        {"metavar": "DIR", "help": "where a list's or table's relative paths begin (default: where it is)"},
    ),
    Argument(
        ("--caption-root",),
        {"metavar": "DIR", "help": "where existing captions are (default: beside the pictures, or under --out)"},
    ),
    Argument(
        ("--frames",),
        {"type": int, "default": 1, "metavar": "N", "help": "frames of a video, as several pictures (default: 1)"},
    ),
    Argument(("--frame-grid",), {"action": "store_true", "help": "a video's frames as one picture, in a grid"}),
)

OUTPUTS = (
    Argument(
        ("--out",),
        {"metavar": "PATH", "help": "file or directory of the result (default: a .txt beside each picture)"},
    ),
    Argument(
        ("--format",),
        {
            "action": "append",
            "metavar": "NAME",
            "help": "txt, caption, jsonl, parquet, webdataset, open-sora-csv or open-sora-plan-json; may be repeated "
            "(default: by the ending of --out)",
        },
    ),
    Argument(
        ("--existing",),
        {
            "choices": ("skip", "overwrite", "append", "prepend"),
            "default": "skip",
            "help": "what to do with an input that has a caption (default: skip)",
        },
    ),
    Argument(
        ("--shard-size",),
        {"type": int, "default": 10_000, "metavar": "N", "help": "records of a shard or part (default: 10000)"},
    ),
    Argument(
        ("--seconds",),
        {"action": "store_true", "help": "let records say how long they took, which differs from run to run"},
    ),
    Argument(("--state",), {"metavar": "DIR", "help": "where the job keeps its journal (default: beside the output)"}),
    Argument(("--retry-failed",), {"action": "store_true", "help": "once more for the inputs that failed"}),
    Argument(("--restart",), {"action": "store_true", "help": "forget what this job did before, and begin anew"}),
)

LENGTHS = (
    Argument(("--max-new-tokens",), {"type": int, "metavar": "N", "help": "most tokens (default: the style's)"}),
    *GENERATION[1:],
)

CONTROL = (
    Argument(
        ("--style",), {"action": "append", "metavar": "NAME", "help": "named prompt; --list-styles shows them all"}
    ),
    Argument(("--list-styles",), {"action": "store_true", "help": "show the styles with their prompts and leave"}),
    Argument(
        ("--prompt",),
        {
            "action": "append",
            "metavar": "TEXT",
            "help": "what to ask, with {filename}, {stem}, {directory}, {key} or any column of the record; of several, "
            "one is chosen for each caption",
        },
    ),
    Argument(
        ("--prompt-file",),
        {"metavar": "FILE", "help": "a prompt a line, as `WEIGHT | PROMPT` or alone; @NAME is a style"},
    ),
    Argument(("--every-prompt",), {"action": "store_true", "help": "ask all prompts of every input, a caption each"}),
    Argument(
        ("--captions",), {"type": int, "default": 1, "metavar": "N", "help": "captions of each input (default: 1)"}
    ),
    Argument(("--begin-with",), {"default": "", "metavar": "TEXT", "help": "what every caption begins with"}),
    Argument(
        ("--forbid",), {"action": "append", "default": [], "metavar": "WORD", "help": "never say it; may be repeated"}
    ),
    Argument(
        ("--require",),
        {
            "action": "append",
            "default": [],
            "metavar": "WORD",
            "help": "try again where it is missing; may be repeated",
        },
    ),
    Argument(
        ("--attempts",),
        {
            "type": int,
            "default": 3,
            "metavar": "N",
            "help": "tries at a caption that loops or misses a word (default: 3)",
        },
    ),
    Argument(("--strip-openings",), {"action": "store_true", "help": 'remove openings such as "The image shows"'}),
    Argument(("--strip",), {"action": "append", "default": [], "metavar": "TEXT", "help": "remove this opening too"}),
    Argument(
        ("--min-words",),
        {"type": int, "default": 0, "metavar": "N", "help": "try again where a caption is shorter (default: 0)"},
    ),
    Argument(
        ("--max-words",), {"type": int, "metavar": "N", "help": "keep as many whole sentences as fit (default: all)"}
    ),
    Argument(("--max-sentences",), {"type": int, "metavar": "N", "help": "keep so many (default: all)"}),
)

WORK = (
    Argument(("--batch-size",), {"type": int, "default": 8, "metavar": "N", "help": "texts at once (default: 8)"}),
    Argument(
        ("--workers",), {"type": int, "default": 2, "metavar": "N", "help": "threads that read pictures (default: 2)"}
    ),
    Argument(
        ("--engine",),
        {
            "choices": ("local", "ray", "msrun"),
            "help": "this process, a Ray cluster, or the processes that msrun starts (default: msrun under msrun, else "
            "local)",
        },
    ),
    Argument(("--actors",), {"type": int, "metavar": "N", "help": "models on the Ray cluster (default: 1)"}),
    Argument(("--cpus",), {"type": int, "metavar": "N", "help": "CPUs of each of them (default: 1)"}),
)

CAPTION_DATASET = Command(
    name="caption-dataset",
    handler=f"{HANDLERS}.caption_dataset:run",
    summary="caption a data set, nothing lost",
    description="Caption folders, tables, shards and videos of any number. Whatever happens (a crash, a full disk, "
    "Ctrl-C), the same command again goes on where it was, and the result is one whole caption an input. What cannot "
    "be captioned is named in failed.jsonl with the reason.",
    groups=(
        ("inputs", INPUTS),
        ("outputs", OUTPUTS),
        ("captions", CONTROL),
        ("work", WORK),
        ("model", MODEL),
        ("generation", LENGTHS),
    ),
    examples="""examples:
  share4v caption-dataset photos --model sharegpt4v-7b --dtype int4
  share4v caption-dataset photos --out captions.jsonl --style detailed --begin-with "A photograph of"
  share4v caption-dataset 'shards/{0000..0127}.tar' --out captioned --format webdataset --engine ray --actors 8
  share4v caption-dataset clips --frames 4 --out annotations.csv --format open-sora-csv

exit status: 0 done, 1 some inputs failed, 2 wrong use, 3 stopped (run the command again to go on), 130 interrupted""",
    unwinds=True,  # records that are not on disk yet
)
