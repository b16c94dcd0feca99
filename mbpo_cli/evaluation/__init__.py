"""Greedy evaluation, diagnostics of agent and model, and their pictures."""
