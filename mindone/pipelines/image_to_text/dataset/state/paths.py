"""Names of a job's state directory and of the files in it."""

STATE_SUFFIX = ".share4v"  # the name of a state directory ends with this
LOCK = "lock"  # locked while a process works on the job
SIGNATURE = "signature.json"  # says that a job of this user made the directory and its listing
JOB = "job.json"  # the settings that determine the results
INPUTS = "inputs.jsonl"
SKIPPED = "skipped.json"  # what the last listing of the inputs skipped
JOURNAL = "journal.jsonl"
PREVIOUS = "previous.jsonl"  # records that the current pass keeps from the previous one
LIMIT = "limit.json"  # the number of inputs that were listed, if the job has a limit
RESTARTED = "restarted"  # exists while a restarted job is unfinished: the same command then resumes it
WRITTEN = "written.jsonl"  # caption files of the run before a restart, so that they do not count as existing captions
IMAGE_HASHES = "image-hashes.jsonl"  # of all inputs, while a job with near_equal is unfinished
FAILED = "failed.jsonl"
REVIEWS = "reviews.jsonl"  # what people decided about captions; no run of the job writes or deletes it
SPEED_LOG = "speed.jsonl"
TOKEN_COUNTS = "token_counts.json"  # lengths of the captions in the outputs, if the job has token budgets
QUEUE = "queue"  # directory of the tasks that msrun's ranks share
TASKS = "tasks.jsonl"  # the tasks of Ray's actors
ANSWERS = "answers.jsonl"  # the answers so far, of one process
ALL_ANSWERS, OLDER_ANSWERS = "answers*.jsonl", "seen*.sqlite*"  # of all processes; of earlier versions
PROGRESS = "output-*.json"  # what an output has on disk; with the name of its format
# Patterns of what a job keeps in its state directory; a directory with none of these is a new job's.
STATE_FILES = (
    *(
        f"{name}*"
        for name in (IMAGE_HASHES, JOB, SKIPPED, JOURNAL, PREVIOUS, FAILED, SPEED_LOG, TASKS, PROGRESS, WRITTEN, LIMIT)
    ),
    *("inputs.*", f"{TOKEN_COUNTS}*", ALL_ANSWERS, OLDER_ANSWERS, RESTARTED, QUEUE, f"{REVIEWS}*"),
)
