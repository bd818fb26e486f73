"""Exit statuses of the commands."""

DONE = 0
SOME_FAILED = 1
USAGE_ERROR = 2
