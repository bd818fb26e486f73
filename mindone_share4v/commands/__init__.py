"""What the commands of `share4v` do; only they print."""
