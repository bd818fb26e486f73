"""Summary, statistics and the HTML report of a job."""
