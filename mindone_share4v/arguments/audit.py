"""Arguments of `share4v audit`."""

from __future__ import annotations

from argparse import ArgumentParser

HELP = "count the words of captions, and find near-duplicate captions"
USAGE = "OUT"
DESCRIPTION = (
    "Count in how many captions each word, phrase of two and three words, and tag occurs, show openings, endings and "
    "lengths, and find near-duplicate captions; with a trigger word, where it is missing and what looks like it "
    "misspelt. Reads any folder of captions, made by share4v or not: .txt and .caption files, or .jsonl, .json, .csv, "
    ".tsv and .parquet tables. With --fail-above it is a gate for scripts. Memory does not grow with the number of "
    "different terms."
)
EPILOG = """examples:
  share4v audit photos --trigger sks
  share4v audit photos --trigger sks --fail-above no-trigger=0 --fail-above 70%
  share4v audit captions.jsonl --json

exit status: 0 success, 1 a limit of --fail-above is exceeded, 2 no captions, or a usage error"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    files = parser.add_argument_group("captions")
    files.add_argument("out", metavar="OUT", help="folder with captions, file of captions, or state directory of a job")
    files.add_argument(
        "--caption-column",
        metavar="NAME",
        help="column of the captions in tables (default: caption, captions, text, ...)",
    )
    files.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="read only files of a folder with such names, for example '*.short.txt'; can be repeated",
    )
    files.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="do not read such files; can be repeated"
    )
    audit = parser.add_argument_group("audit and output")
    audit.add_argument("--trigger", metavar="WORD", help="word or phrase that every caption should have")
    audit.add_argument(
        "--fail-above",
        action="append",
        default=[],
        metavar="LIMIT",
        help="exit with status 1 if more captions than this share have the same: 60%% for any word, phrase or tag but "
        "the trigger and function words; or opening=, ending=, near-duplicates=, identical=, no-trigger=, "
        "near-misses=, over-budget=, empty= or missing= and a share; can be repeated",
    )
    audit.add_argument(
        "--fit",
        action="append",
        default=[],
        metavar="NAME_OR_DIR:N",
        help="count the tokens of a text encoder, and the captions with more than N, special tokens included; as of "
        "caption-dataset, but nothing is cut; can be repeated",
    )
    audit.add_argument("--local-files-only", action="store_true", help="do not download the tokenizers of --fit")
    audit.add_argument(
        "--top", type=int, default=20, metavar="N", help="number of terms of each kind to show (default: %(default)s)"
    )
    audit.add_argument(
        "--function-words", action="store_true", help='show "a", "of the" and other terms that end in such a word too'
    )
    audit.add_argument("--json", action="store_true", help="print the audit as one JSON object")
