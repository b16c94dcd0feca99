"""Logs of a run: metrics, progress, and the time of each phase."""
