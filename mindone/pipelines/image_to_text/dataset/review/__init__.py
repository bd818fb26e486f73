"""Review of a job's captions by people: find, edit, accept, reject and undo, while the job runs or afterwards."""
