"""A limit of memory for some processes: a control group of the kernel, of version 1 or 2."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

GROUPS = Path("/sys/fs/cgroup")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Group:
    """Processes whose memory is counted, and limited, together, page cache included."""

    folder: Path
    names: tuple[str, str, str]

    def limit(self, size: int) -> None:
        """Let them have so many bytes together."""
        (self.folder / self.names[0]).write_text(str(size), encoding="ascii")

    def used(self) -> int:
        """Bytes that they have now."""
        return int((self.folder / self.names[1]).read_text(encoding="ascii"))

    def peak(self) -> int:
        """Bytes that they had at most; with version 2 of Linux 5.19 and later."""
        return int((self.folder / self.names[2]).read_text(encoding="ascii"))

    def shell(self, *command: str) -> list[str]:
        """``command``, and what it starts, inside."""
        return ["sh", "-ec", f"echo $$ > {self.folder}/cgroup.procs; exec {shlex.join(command)}"]

    def kills(self) -> int:
        """How many processes the kernel ended for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            if (self.folder / name).exists():
                lines = dict(line.split() for line in (self.folder / name).read_text(encoding="ascii").splitlines())
                return int(lines["oom_kill"])
        raise AssertionError(f"{self.folder} counts no kills")

    def processes(self) -> list[psutil.Process]:
        """What runs inside."""
        return [psutil.Process(int(pid)) for pid in (self.folder / "cgroup.procs").read_text().split()]


@contextmanager
def memory_group(size: int | None = None) -> Iterator[Group]:
    """A group of ``size`` bytes (None: no limit) below this process's own; whatever runs in it at the end is killed.

    Where none may be made (that takes root, and on version 2 a parent that passes "memory" on) the test is skipped; in
    CI it fails.
    """
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    paths = {controllers: path.strip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    name = f"densenet-{secrets.token_hex(4)}"
    if "memory" in paths:
        folder = GROUPS / "memory" / paths["memory"] / name
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes")
    else:
        folder, names = GROUPS / paths.get("", "") / name, ("memory.max", "memory.current", "memory.peak")
    group = Group(folder, names)
    try:
        group.folder.mkdir()
        group.limit(size or psutil.virtual_memory().total)
    except OSError as error:
        if group.folder.is_dir():
            group.folder.rmdir()
        if os.environ.get("CI"):
            pytest.fail(f"no control group for memory can be made here: {error}")
        pytest.skip(f"needs a control group for memory: {error}")
    try:
        yield group
    finally:
        left = group.processes()
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=TIMEOUT_S)
        group.folder.rmdir()
