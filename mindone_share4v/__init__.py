"""The command `share4v`, apart from `mindone`, whose import takes seconds, so that `share4v --help` answers at once."""
