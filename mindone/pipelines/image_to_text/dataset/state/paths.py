"""Names of a job's state directory and of the files in it."""

STATE_SUFFIX = ".share4v"  # the name of a state directory ends with this
LOCK = "lock"  # locked while a process works on the job
JOB = "job.json"  # the settings that determine the results
INPUTS = "inputs.jsonl"
JOURNAL = "journal.jsonl"
PREVIOUS = "previous.jsonl"  # records that the current pass keeps from the previous one
RESTARTED = "restarted"  # exists while a restarted job is unfinished: the same command then resumes it
FAILED = "failed.jsonl"
SPEED_LOG = "speed.jsonl"
