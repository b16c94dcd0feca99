"""Sweeps: many runs in parallel, and searches for the values with the highest score."""
