"""Executors: where a job's tasks run (this process, Ray, or msrun)."""
