"""Named random streams, all derived from one seed; nothing draws from global random state.

A stream depends on its name, not on its position, so that a new stream never changes the others.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Return the seed sequence of a named stream; strings are hashed by CRC-32."""
    key = tuple(zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names)
    return np.random.SeedSequence(seed, spawn_key=key)


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for a named stream."""
    return torch.Generator(device).manual_seed(torch_seed(sequence(seed, *names)))


def torch_seed(stream: np.random.SeedSequence) -> int:
    """Return a seed for torch, of 63 bits because torch takes a signed integer."""
    return int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))


def episode_seed(seed: int, name: str, episode: int) -> int:
    """Return the 32-bit seed of one episode, for the reset of an environment."""
    return int(sequence(seed, name, episode).generate_state(1, np.uint32)[0])


def episode_seeds(seed: int, name: str, num_episodes: int) -> list[int]:
    """Return the seeds of the first `num_episodes` episodes."""
    return [episode_seed(seed, name, episode) for episode in range(num_episodes)]
