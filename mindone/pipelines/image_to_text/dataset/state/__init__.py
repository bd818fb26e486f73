"""What a job stores on disk: its inputs, its journal of records, and what it needs to resume."""
