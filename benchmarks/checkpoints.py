"""Time of a checkpoint for a small and a large replay buffer: `python -m benchmarks.checkpoints`.

Sizes of Hopper: SAC with two layers of 256, seven networks of four layers of 200, 1,000 new transitions per
checkpoint, which is the default interval.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.ours import CPU, bench_config, random_transitions, spaces_of
from mbpo_cli.buffers import ReplayBuffer
from mbpo_cli.build import build_agent, build_model
from mbpo_cli.storage.checkpoint import Checkpoints

NEW_ROWS, ROUNDS = 1_000, 9


def seconds(stored: int) -> float:
    """Return the median seconds of a checkpoint with `stored` transitions in the replay buffer."""
    spaces, config = spaces_of("sac"), bench_config()
    agent, model = build_agent(config, spaces, CPU), build_model(config, spaces, CPU)
    buffer = ReplayBuffer(2_000_000, spaces)
    buffer.add(random_transitions(stored, spaces))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=2)
        for step in range(ROUNDS + 1):
            state = {"agent": agent.state_dict(), "model": model.state_dict()}
            start = time.perf_counter()
            checkpoints.save(step, state, {"real": buffer}, {})
            times.append(time.perf_counter() - start)
            buffer.add(random_transitions(NEW_ROWS, spaces))
    return statistics.median(times[1:])  # the first checkpoint stores the whole buffer


if __name__ == "__main__":
    torch.set_num_threads(1)
    for stored in (10_000, 1_000_000):
        print(json.dumps({"transitions": stored, "seconds": round(seconds(stored), 4)}))
