"""How much memory decoding may take: what the control group (a container's limit) or the machine leaves, by workers.

The limit of the group itself must never be met: the kernel then ends a process, or all of the container.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
JAVA_SHARE = 0.25
"""Of the memory, Java's heap: -XX:MaxRAMPercentage in config/config.properties."""
JAVA_BYTES = 150 * 2**20
"""What Java takes beside its heap."""
REQUEST_BYTES = 128 * 2**20
"""What a worker takes for a moment: a body of 32 MiB of JSON, or an ordinary picture."""
WORKER_BYTES = 570 * 10**6
"""What a worker takes for itself (DenseNet-121)."""
RESERVE = 0.05
"""Of the memory, what is left free."""
WORKER = "model_service_worker"
"""Stands in the command line of each of TorchServe's workers."""


def limit(process: str = "self") -> int:
    """Bytes that this process and those of its server may take: the least of the machine's and its groups' limits.

    Args:
        process: whose groups, a number below /proc.
    """
    return min([psutil.virtual_memory().total, *(size for size, _ in _groups(process))])


def available() -> int:
    """Bytes that may still be taken before the machine's or a group's limit is met; files' pages can be given back."""
    return min([psutil.virtual_memory().available, *(size - used for size, used in _groups("self"))])


def left(base: int, workers: int) -> int:
    """Bytes that all decoding processes of a server may take together; 0 or less where nothing is left.

    Args:
        base: bytes that a worker has for itself, without decoding processes.
        workers: of this server.
    """
    whole = limit()
    taken = whole * (JAVA_SHARE + RESERVE) + JAVA_BYTES + workers * (base + REQUEST_BYTES)
    return int(whole - taken)


def workers_that_fit() -> int:
    """How many workers have room beside Java, at least 1."""
    left = limit() * (1 - JAVA_SHARE - RESERVE) - JAVA_BYTES
    return max(1, int(left // (WORKER_BYTES + REQUEST_BYTES)))


def own_bytes() -> int:
    """Bytes that this process has for itself, without the libraries that it shares with others."""
    return int(psutil.Process().memory_full_info().uss)


def workers() -> int:
    """How many workers TorchServe has now, of all models and versions; 1 outside of it."""
    count = 0
    try:
        for process in psutil.Process(os.getppid()).children():
            count += WORKER in " ".join(process.cmdline())
    except psutil.Error:  # one that just ended
        pass
    return max(count, 1)


def _groups(process: str) -> Iterator[tuple[int, int]]:
    """Limit and usage, bytes, of the control groups of a process that have a limit: its own and those above.

    In a container the paths may be those of the machine, which aren't there: the container's own is then at the root.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        lines = Path(f"/proc/{process}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":
            root, names, files = GROUPS, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            root, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            files = "total_inactive_file"
        else:
            continue
        folder = root / path.strip("/")
        for group in (folder, *folder.parents):
            try:
                size, used = ((group / name).read_text(encoding="ascii") for name in names)
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                if size.strip() != "max":
                    yield int(size), int(used) - int(statistics.get(files, 0))
            except (OSError, ValueError):  # no such group, or one without a limit
                pass
            if group == root:
                break
