"""Arguments of `share4v caption-dataset`."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, _ArgumentGroup

from .common import add_generation_arguments, add_model_arguments, add_pixels_argument, add_url_arguments

HELP = "caption a data set; can be interrupted and resumed"
STATUS = "starting MindSpore"
USAGE = "INPUT..."
DESCRIPTION = (
    "Caption folders, tables, shards and videos of any size. However a job ends (a crash, a full disk, Ctrl-C), "
    "running the same command again resumes it, and every input gets exactly one complete result. Inputs that cannot "
    "be captioned are listed in failed.jsonl with the reason."
)
EPILOG = """examples:
  share4v caption-dataset photos --model sharegpt4v-7b --dtype int4
  share4v caption-dataset photos --out captions.jsonl --style detailed --begin-with "A photograph of"
  share4v caption-dataset photos --out new.jsonl --limit 20 --dry-run
  share4v caption-dataset --config captions.jsonl.share4v/job.json --out again.jsonl
  share4v caption-dataset photos --model 7b-int4 --replicas 4
  share4v caption-dataset 'shards/{0000..0127}.tar' --out captioned --format webdataset --engine ray --actors 8
  share4v caption-dataset photos --out train --format imagefolder --format txt --existing overwrite
  share4v caption-dataset photos --engine http --endpoint http://gpu1:8000/v1 --model NAME --api-key-env KEY
  share4v caption-dataset clips --frames 4 --out annotations.csv --format open-sora-csv

exit status: 0 success, 1 some inputs failed, 2 usage error, 3 stopped (run the same command again to resume), \
130 interrupted"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    _add_input_arguments(parser)
    add_url_arguments(parser)
    _add_output_arguments(parser)
    _add_job_arguments(parser)
    _add_prompt_arguments(parser)
    _add_text_arguments(parser)
    _add_execution_arguments(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser, max_new_tokens=None, default="set by --style")


def _add_input_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="folder, image, video, list of paths (.txt), table (.json, .jsonl, .csv, .tsv, .parquet), archives "
        "(.tar, .tar.gz, .zip, also WebDataset shards, with braces as in shard-{0000..0012}.tar), or directory of a "
        "Hugging Face data set",
    )
    group.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="only these files of a folder; can be repeated (default: all images and videos)",
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave these files and directories of a folder out; can be repeated",
    )
    _add_table_arguments(group)
    group.add_argument(
        "--same-name",
        choices=("extension", "first"),
        default="extension",
        help="images 1.jpg and 1.png of a folder or an archive: caption both, in 1.jpg.txt and 1.png.txt, or only the "
        "first, in 1.txt, which is what LoRA trainers read (default: %(default)s)",
    )
    group.add_argument(
        "--frames",
        type=int,
        default=1,
        metavar="N",
        help="number of frames to take from each video (default: %(default)s, from the middle)",
    )
    group.add_argument(
        "--frame-grid",
        action="store_true",
        help="combine the frames of a video into one image (default: pass them as separate images)",
    )


def _add_table_arguments(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--image-column",
        metavar="NAME",
        help="table column with the path or the bytes of the image (default: guessed)",
    )
    group.add_argument(
        "--caption-column",
        metavar="NAME",
        help="table column with an existing caption (default: guessed)",
    )
    group.add_argument(
        "--key-column",
        metavar="NAME",
        help="table column whose value identifies a record (default: the path or the row number)",
    )
    group.add_argument(
        "--image-root",
        metavar="DIR",
        help="directory that relative paths in a list or table start from (default: the list's or table's own)",
    )
    group.add_argument(
        "--caption-root",
        metavar="DIR",
        help="directory of existing captions (default: beside the images, or under --out)",
    )
    group.add_argument(
        "--encoding",
        metavar="NAME",
        help="encoding of tables and lists, such as cp1252 or gbk (default: UTF-8, or UTF-16 if the file says so)",
    )


def _add_output_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--out",
        metavar="PATH",
        help="file or directory to write (default: a .txt file beside each image)",
    )
    group.add_argument(
        "--format",
        action="append",
        metavar="NAME",
        help="txt, caption, jsonl, json, csv, parquet, webdataset, imagefolder, sd-scripts-json, open-sora-csv or "
        "open-sora-plan-json; can be repeated (default: follows from the suffix of --out: .jsonl, .json, .csv and "
        ".parquet are files, a directory gets .txt files)",
    )
    group.add_argument(
        "--existing",
        choices=("skip", "overwrite", "append", "prepend"),
        default="skip",
        help="what to do if an input already has a caption: keep it, replace it, or put the new one after or before it "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the file --out even if it exists and another program or job wrote it (default: an error)",
    )
    group.add_argument(
        "--shard-size",
        type=int,
        default=10_000,
        metavar="N",
        help="maximum number of records per output shard or part (default: %(default)s)",
    )
    group.add_argument(
        "--seconds",
        action="store_true",
        help="store the time that each record took (default: no, so that repeated runs give identical files)",
    )


def _add_job_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("job")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="take settings from FILE: TOML with the names of these options (batch-size = 4; inputs is INPUT), or the "
        "job.json that a job wrote to its state directory; what the command line says comes before it",
    )
    parser.set_defaults(given=frozenset())  # filled by the parser
    group.add_argument(
        "--state",
        metavar="DIR",
        help="directory of the job's journal (default: beside the output)",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="process the inputs that failed again, and only these; the rules, --attempts and --on-fault may be new",
    )
    group.add_argument(
        "--restart",
        action="store_true",
        help="caption all inputs again, for example with other settings; captions that people wrote are kept, those of "
        "the earlier run are replaced",
    )
    group.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="process only the first N inputs; the same command without --limit continues with the others",
    )
    group.add_argument(
        "--near-equal",
        choices=("note", "once"),
        help="for images that nearly equal an earlier one, such as copies of another size or format: note it, or "
        "caption only the first of them once and give the others its captions; reads all images once before (default: "
        "only the report shows them)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be captioned, kept, skipped and written, and write nothing; no model is loaded",
    )
    group.add_argument(
        "--adopt",
        action="store_true",
        help="take over a job that was moved, copied, shared, or started by an older version: match its records with "
        "the inputs and sign its state directory",
    )


def _add_prompt_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--style",
        action="append",
        metavar="NAME",
        help="named prompt with its own length limits, see --list-styles; can be repeated (default: the style named "
        "default)",
    )
    group.add_argument("--list-styles", action="store_true", help="list the styles with their prompts and exit")
    group.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="question to ask; may contain {filename}, {stem}, {directory}, {key} or the name of a table column, and "
        "{name|text}, which is text where the column is empty; {{ and }} are braces; if repeated, one of the questions "
        "is drawn for each caption",
    )
    group.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="file of prompts, one per line, each as PROMPT or `WEIGHT | PROMPT`; @NAME is a style",
    )
    group.add_argument(
        "--every-prompt",
        action="store_true",
        help="ask every prompt about every input (default: draw one for each caption)",
    )
    group.add_argument(
        "--text",
        action="append",
        dest="texts",
        metavar="NAME:STYLE",
        help="give every input a text of this name; can be repeated. NAME:PROMPT asks a prompt of your own, which may "
        "contain the names of earlier texts, as in 'short:Shorten: {long}'. All other settings are the job's, or those "
        "of the table [texts.NAME] in --config",
    )
    group.add_argument(
        "--captions",
        type=int,
        default=1,
        metavar="N",
        help="number of captions per input (default: %(default)s)",
    )


def _add_text_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("caption text")
    group.add_argument(
        "--begin-with",
        default="",
        metavar="TEXT",
        help="force the model to start every caption with TEXT and to continue from there; may contain the variables "
        "of --prompt. For a trigger word use --template, which the model does not see",
    )
    _add_wording_arguments(group)
    group.add_argument(
        "--schema",
        metavar="FILE",
        help="make every caption JSON that matches the JSON schema in FILE, however long it may be; needs the extra "
        "structured",
    )
    group.add_argument(
        "--forbid",
        action="append",
        default=[],
        metavar="WORD",
        help="never generate WORD; can be repeated; @refusals is a list of phrases that finished captions must not "
        "have, see --list-rules",
    )
    group.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="WORD",
        help="retry if WORD is missing; can be repeated",
    )
    group.add_argument(
        "--attempts",
        type=int,
        default=3,
        metavar="N",
        help="maximum number of attempts for a caption that is repetitive or breaks a rule (default: %(default)s)",
    )
    group.add_argument(
        "--on-fault",
        choices=("keep", "fail"),
        default="keep",
        help="what to do with a caption that still breaks a rule after the last attempt: write it with a note, or fail "
        "the input and list the caption in failed.jsonl (default: %(default)s)",
    )
    group.add_argument("--list-rules", action="store_true", help="list the rules and the lists of phrases and exit")
    _add_rule_arguments(group)


def _add_wording_arguments(group: _ArgumentGroup) -> None:
    """Add what is done to captions when they are written."""
    group.add_argument(
        "--template",
        metavar="TEXT",
        help='write every caption as TEXT, such as "sks, {caption}", which may contain the variables of --prompt; the '
        "model does not see it, and the same command with another TEXT rewrites the outputs without the model",
    )
    group.add_argument(
        "--fit",
        action="append",
        default=[],
        metavar="NAME_OR_DIR:N",
        help="drop whole sentences from the end of a caption until it has at most N tokens of a text encoder, special "
        "tokens and template included: a directory with tokenizer.json, CLIP's vocab.json and merges.txt or T5's "
        "spiece.model, or owner/name on the Hugging Face hub; can be repeated: a caption then fits into all of them",
    )


def _add_rule_arguments(group: _ArgumentGroup) -> None:
    """Add the rules that change a caption, or limit its length."""
    group.add_argument(
        "--strip-openings",
        action="store_true",
        help='remove openings such as "The image shows"',
    )
    group.add_argument(
        "--strip",
        action="append",
        default=[],
        metavar="TEXT",
        help="also remove the opening TEXT; can be repeated",
    )
    group.add_argument(
        "--min-words",
        type=int,
        default=0,
        metavar="N",
        help="retry if a caption has fewer words (default: %(default)s)",
    )
    group.add_argument(
        "--max-words",
        type=int,
        metavar="N",
        help="cut a caption after the last sentence that fits into N words (default: no limit)",
    )
    group.add_argument(
        "--max-sentences",
        type=int,
        metavar="N",
        help="cut a caption after N sentences (default: no limit)",
    )


def _add_execution_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="number of captions to generate together (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="number of threads that read images (default: %(default)s)",
    )
    add_pixels_argument(group)
    group.add_argument(
        "--engine",
        choices=("local", "replicas", "ray", "msrun", "http"),
        help="where to run: in this process, in several on this machine, on a Ray cluster, in the processes that msrun "
        "started, or on servers with OpenAI's API (default: msrun under msrun, replicas if --replicas is above 1, "
        "otherwise local)",
    )
    group.add_argument(
        "--replicas",
        type=_replicas,
        metavar="N",
        help="caption in N processes on this machine, each on cores of its own; they share the weights of a converted "
        "checkpoint (default: auto: one for every 8 cores if there are 16 or more and the checkpoint is converted, "
        "otherwise 1)",
    )
    group.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help="with --engine ray: number of actors, each with its own model (default: 1)",
    )
    group.add_argument("--cpus", type=int, metavar="N", help="with --engine ray: CPUs per actor (default: 1)")
    _add_endpoint_arguments(parser)


def _replicas(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a number or auto, got {text!r}") from None


def _add_endpoint_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("with --engine http")
    group.add_argument(
        "--endpoint",
        action="append",
        metavar="URL",
        help="address of an OpenAI-compatible API, such as http://localhost:8000/v1; can be repeated; --model is then "
        "the name that it knows the model by",
    )
    group.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="environment variable with the API key (default: no key is sent)",
    )
    group.add_argument(
        "--max-in-flight",
        type=int,
        metavar="N",
        help="maximum number of requests in flight at each endpoint; it starts at 4 and adapts (default: 64)",
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="scale images down to N pixels on the longer side; 0: never (default: 1024)",
    )
    group.add_argument(
        "--request-timeout",
        type=float,
        metavar="SECONDS",
        help="give a request up after so long (default: 300)",
    )
    group.add_argument(
        "--request-fields",
        metavar="JSON",
        help="""further fields of every request, such as '{"top_k": 20}' for vLLM""",
    )
