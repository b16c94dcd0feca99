"""The report: compare groups of runs and say which agent is better, by how much, and how certain that is."""
