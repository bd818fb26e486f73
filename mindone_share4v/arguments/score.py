"""Arguments of `share4v score`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "score captions against references"
USAGE = "PREDICTIONS REFERENCES"
DESCRIPTION = (
    "Score captions as the COCO captions challenge does, with pycocoevalcap: BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr "
    "and SPICE. METEOR, SPICE and the original tokenizer need Java, and SPICE downloads a 400 MB model once. A metric "
    "that cannot be computed is reported with the reason and the fix; the others are still computed. Input files: "
    ".json (a list, an object by key, or COCO's format), .jsonl, .csv or .tsv. Several rows with the same key are "
    "several references."
)
EPILOG = """examples:
  share4v score captions.jsonl references.jsonl
  share4v score captions.jsonl captions_val2014.json --json
  share4v score captions.csv references.csv --key image --key path --metric bleu --metric cider

exit status: 0 success, 1 a metric was not computed or an image is only in one of the files, 2 usage error"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    files = parser.add_argument_group("files")
    files.add_argument("predictions", metavar="PREDICTIONS", help="file of captions to score, one per image")
    files.add_argument("references", metavar="REFERENCES", help="file of human captions, one or more per image")
    files.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="NAME",
        help="column that identifies the image; give it twice if PREDICTIONS and REFERENCES use different names "
        "(default: key, image_id, image, file_name, ...)",
    )
    files.add_argument(
        "--caption",
        action="append",
        default=[],
        metavar="NAME",
        help="column of the caption; give it twice if PREDICTIONS and REFERENCES use different names (default: "
        "caption, captions, text, ...)",
    )
    scoring = parser.add_argument_group("scoring and output")
    scoring.add_argument(
        "--metric",
        action="append",
        choices=("bleu", "meteor", "rouge-l", "cider", "spice"),
        help="metric to compute; can be repeated (default: all)",
    )
    scoring.add_argument(
        "--tokenizer",
        choices=("auto", "ptb", "python"),
        default="auto",
        help="ptb is Stanford's original and needs Java; python is nearly identical and does not; auto is ptb if Java "
        "is installed, or python (default: %(default)s)",
    )
    scoring.add_argument("--local-files-only", action="store_true", help="do not download the model of SPICE")
    scoring.add_argument("--per-image", metavar="FILE", help="also write the scores of each image to a .jsonl file")
    scoring.add_argument("--json", action="store_true", help="print the scores as one JSON object")
