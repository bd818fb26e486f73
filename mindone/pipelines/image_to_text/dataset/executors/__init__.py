"""Executors: where a job's tasks run (this process, a Ray cluster, or the processes that msrun started)."""
