"""What a job stores on disk: inputs, journal, and what resuming needs."""
