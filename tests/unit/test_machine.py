"""Workers and threads follow what the process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from handler import memory
from scripts.lib import machine
from scripts.lib.machine import default_workers, threads_per_worker


@pytest.mark.parametrize(("gib", "workers"), [(0.5, 1), (1.5, 1), (2, 1), (3, 2), (4, 4), (64, 4)])
def test_workers_fit_into_the_memory(gib: float, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in 1.5 GiB met the container's limit under large bodies."""
    monkeypatch.setattr(memory, "limit", lambda: int(gib * 2**30))
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: False)
    assert default_workers() == workers


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
    ids=["no-cgroup", "v2-unlimited", "v2-two-and-a-half", "v2-half", "v1-three", "v1-unlimited"],
)
def test_one_worker_a_physical_core_that_may_be_used(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert default_workers() == cores
    monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert default_workers() == 3
    assert threads_per_worker() == max(1, cores // 3), "they decode"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert threads_per_worker() == 1
