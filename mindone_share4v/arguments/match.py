"""Arguments of `share4v match`."""

from __future__ import annotations

from argparse import ArgumentParser

from .common import add_model_arguments, add_url_arguments

HELP = "score how well captions match their images, with CLIP or by asking the model"
USAGE = "TABLE"
DESCRIPTION = (
    "Write a table of images and captions again, with CLIP's score of each row in the column `match`: the cosine of "
    "image and text times 100, by which Open-Sora's datautil --matchmin filters. CLIP reads the first 77 tokens of a "
    "caption. The model is a CLIPModel in a local directory, with both towers and its tokenizer; any checkpoint in "
    "transformers' format will do, nothing is downloaded. --verify asks a captioning model to complete each caption "
    "before every color, number and place that it states, and lists the words that it does not agree with in the "
    "column `contradictions`. A command that was interrupted continues after the scores that it had computed."
)
EPILOG = """examples:
  share4v match open_sora.csv --clip clip-vit-large-patch14
  share4v match captions.jsonl --clip clip-vit-large-patch14 --out scored.jsonl
  share4v match captions.jsonl --verify --model sharegpt4v-7b

exit status: 0 success, 1 some rows have no score, 2 usage error"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    table = parser.add_argument_group("table")
    table.add_argument(
        "table",
        metavar="TABLE",
        help=".csv, .tsv, .json, .jsonl or .parquet file, or a folder with one that caption-dataset wrote",
    )
    table.add_argument("--out", metavar="FILE", help="file to write (default: TABLE with _match after its name)")
    table.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the file if it exists, and discard the scores of an interrupted command with other settings "
        "(default: an error)",
    )
    table.add_argument(
        "--retry-failed",
        action="store_true",
        help="score only the rows that could not be scored, and write the file again with all scores",
    )
    table.add_argument(
        "--image-column",
        metavar="NAME",
        help="column of the images (default: the inputs of the job that wrote TABLE, or path, source, image, ...)",
    )
    table.add_argument("--caption-column", metavar="NAME", help="column of the captions (default: caption, text, ...)")
    table.add_argument(
        "--image-root",
        metavar="DIR",
        help="directory of relative image paths (default: the current one for the column source, else the table's)",
    )
    table.add_argument(
        "--encoding", metavar="NAME", help="encoding of a text file (default: UTF-8, or UTF-16 if the file says so)"
    )
    model = parser.add_argument_group("what to add, and output")
    model.add_argument("--clip", metavar="DIR", help="add the column match; directory of a CLIP model")
    model.add_argument("--verify", action="store_true", help="add the column contradictions, with the model of --model")
    model.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="rows scored together (default: %(default)s)"
    )
    model.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    add_url_arguments(parser)
    add_model_arguments(parser)
