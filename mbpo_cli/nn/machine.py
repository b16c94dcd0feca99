"""The CPU cores, GPUs and memory that this process may use."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# Of control groups of version 2 and 1: the folder, and the files of the limit and of the memory in use.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes of a device that are free for this process, or None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        groups = re.findall(r"^\d+:(?:.*\bmemory\b.*)?:(/.*)$", Path("/proc/self/cgroup").read_text(), re.M)
        available = re.search(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return None
    free = [int(available[1]) * 1024] if available else []
    for root, limit, usage in CGROUPS:
        for group in groups:
            path = Path(group)
            # In a container, the path may be that of the host; its root is that of the container.
            for folder in (path, *path.parents):
                free += _left(root / str(folder).lstrip("/"), limit, usage)
    return min(free, default=None)


def _left(folder: Path, limit: str, usage: str) -> list[int]:
    """Return what is left of a control group's memory, file cache included, if it has a limit."""
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
        cached = re.findall(r"^(?:total_)?inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # there is no such group, or no limit: "max"
        return []
    return [most - used + max(map(int, cached), default=0)]


def has_bfloat16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 numbers natively, without emulation."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]
