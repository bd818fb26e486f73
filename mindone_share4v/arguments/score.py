"""`share4v score`."""

from .command import HANDLERS, Argument, Command

SCORE = Command(
    name="score",
    handler=f"{HANDLERS}.score:run",
    summary="score captions against references",
    description="Score captions as the COCO captions challenge does, by pycocoevalcap: BLEU-1 to BLEU-4, METEOR, "
    "ROUGE-L, CIDEr and SPICE. METEOR, SPICE and the original tokenizer need Java, and SPICE a model of 400 MB that is "
    "downloaded once; what cannot be computed is named, with what to do, and the rest is computed. Files: .json (a "
    "list, an object by key, or COCO's), .jsonl, .csv, .tsv; rows of the same key are several references.",
    groups=(
        (
            "what to score",
            (
                Argument(("predictions",), {"metavar": "PREDICTIONS", "help": "captions, one an image"}),
                Argument(("references",), {"metavar": "REFERENCES", "help": "what people wrote, one or more an image"}),
                Argument(
                    ("--key",),
                    {
                        "action": "append",
                        "default": [],
                        "metavar": "NAME",
                        "help": "column that tells images apart; twice for the predictions' and the references' "
                        "(default: key, image_id, image, file_name, ...)",
                    },
                ),
                Argument(
                    ("--caption",),
                    {
                        "action": "append",
                        "default": [],
                        "metavar": "NAME",
                        "help": "column with the caption; twice for the predictions' and the references' (default: "
                        "caption, captions, text, ...)",
                    },
                ),
            ),
        ),
        (
            "how",
            (
                Argument(
                    ("--metric",),
                    {
                        "action": "append",
                        "choices": ("bleu", "meteor", "rouge-l", "cider", "spice"),
                        "help": "compute this one; may be repeated (default: all)",
                    },
                ),
                Argument(
                    ("--tokenizer",),
                    {
                        "choices": ("auto", "ptb", "python"),
                        "default": "auto",
                        "help": "ptb: Stanford's, in Java; python: nearly the same without Java (default: ptb where "
                        "Java is)",
                    },
                ),
                Argument(("--local-files-only",), {"action": "store_true", "help": "download nothing for SPICE"}),
                Argument(("--per-image",), {"metavar": "FILE", "help": "write each image's scores to a .jsonl"}),
                Argument(("--json",), {"action": "store_true", "help": "print one JSON object"}),
            ),
        ),
    ),
    examples="""examples:
  share4v score captions.jsonl references.jsonl
  share4v score captions.jsonl captions_val2014.json --json
  share4v score captions.csv references.csv --key image --key path --metric bleu --metric cider

exit status: 0 done, 1 a metric could not be computed or images are in one file alone, 2 wrong use""",
)
