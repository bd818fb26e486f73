"""What the commands of `share4v` do, one module for each, with `run(arguments)`; only these modules print."""
