"""`share4v report`."""

from .command import HANDLERS, Argument, Command

REPORT = Command(
    name="report",
    handler=f"{HANDLERS}.report:run",
    summary="look at what caption-dataset did",
    description="Write one HTML page about a job of caption-dataset, also while it is at work: counts, failures by "
    "reason, lengths, speed, the most frequent openings, suspected loops, repeated captions, and a sample of pictures "
    "with their captions. The page opens no connection.",
    groups=(
        (
            "what to report on",
            (
                Argument(
                    ("out",),
                    {
                        "metavar": "OUT",
                        "help": "what caption-dataset got as --out or --state, or the folder that it captioned",
                    },
                ),
                Argument(
                    ("--html",),
                    {"metavar": "FILE", "help": "the page to write (default: report.html beside the job's journal)"},
                ),
            ),
        ),
    ),
    examples="""examples:
  share4v report photos
  share4v report captions.jsonl --html report.html

exit status: 0 done, 2 there is no such job, or an extra is missing (pip install 'mindone-share4v[report]')""",
)
