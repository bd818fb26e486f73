"""What the commands of `share4v` do, one module for each, with `run(arguments)`; they print through `..printing`."""
