"""Executors: where a job's tasks run: here, in processes on this machine, on a cluster, or on servers."""
