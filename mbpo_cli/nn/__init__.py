"""Batched networks, the optimizer, compilation, random streams, and the hardware."""
