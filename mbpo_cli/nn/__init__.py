"""Batched networks, optimisers, compilation, and what the machine can do."""
