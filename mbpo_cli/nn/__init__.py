"""Batched networks, the optimizer, compilation, and the hardware."""
