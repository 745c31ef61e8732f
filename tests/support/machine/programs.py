"""Programs of the machine that tests drive: nginx, Prometheus, Chromium, buildah and others."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine.waiting import wait_until

TIMEOUT_S = 60


def program(*names: str, package: str) -> str:
    """The path of the first of ``names`` that is installed; without one the test is skipped, in CI it fails.

    Args:
        names: what the program may be called.
        package: Debian's package that brings it.
    """
    for name in names:
        if path := shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"):
            return path
    if os.environ.get("CI"):
        pytest.fail(f"no {names[0]} here, and CI installs one: see .ci/run")
    pytest.skip(f"needs {names[0]} (apt-get install {package})")


@contextmanager
def running(*command: str, ready: Callable[[], object], out: Path, err: Path, **rights: Any) -> Iterator[None]:
    """A program that runs while the block does, once it is ready.

    Args:
        command: program and arguments.
        ready: whether it is.
        out: file for what it prints.
        err: file for its errors; may be the same.
        rights: ``user``, ``group`` and ``extra_groups`` of :class:`subprocess.Popen`.
    """

    def errors() -> str:
        return err.read_text(encoding="utf-8", errors="replace")[-2000:]

    def up() -> object:
        assert process.poll() is None, f"{command[0]} ended: {errors()}"
        return ready()

    with out.open("ab") as output, err.open("ab") as complaints:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=complaints, **rights)
    try:
        wait_until(up, TIMEOUT_S, errors)
        yield
    finally:
        process.terminate()
        process.wait(timeout=TIMEOUT_S)
