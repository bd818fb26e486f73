"""The HTML report of a job: what is counted, its charts, and the page."""
