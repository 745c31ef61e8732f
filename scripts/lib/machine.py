"""What this process may use of the machine: cores, and from them workers and threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from handler import memory
from scripts.lib.environment import has_nvidia_gpu

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores that this process may use: affinity and a container's CPU limit (cgroup quota) count."""
    logical, physical = psutil.cpu_count() or 1, psutil.cpu_count(logical=False) or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = usable * physical // logical if usable > 1 else 1
    quota = _cgroup_cores()
    return max(1, min(cores, int(quota)) if quota else cores)


def default_workers() -> int:
    """One worker a GPU, else one a core, as far as the memory of the machine or the container goes."""
    return _gpus() or min(usable_cores(), memory.workers_that_fit())


def threads_per_worker() -> int:
    """One on a CPU, where each core has a worker; on a GPU the worker's share of the cores, to decode its batches."""
    return max(1, usable_cores() // _gpus()) if _gpus() else 1


def serves_on_gpu() -> bool:
    """Whether workers on this machine compute on a GPU."""
    return _gpus() > 0


def serving_device() -> torch.device:
    """Where workers on this machine compute."""
    import torch

    return torch.device("cuda" if serves_on_gpu() else "cpu")


def _gpus() -> int:
    """The GPUs that torch can use; without a driver that is known without importing it, which takes seconds."""
    if not has_nvidia_gpu():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cgroup_cores() -> float | None:
    """The cores that a container's CPU limit allows (cgroup v2, then v1); None without a limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else max(1.0, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    try:
        folder = CGROUP / "cpu"
        quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if quota_us <= 0 else max(1.0, quota_us / period_us)
    except (OSError, ValueError):
        return None
