"""The command `share4v`; separate from `mindone`, whose import takes seconds, so that `share4v --help` is fast."""
