"""For all tests: one thread a process, as a worker has, and no default port; fuzzing's seed is printed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from tests.support.hostile.seeds import VARIABLE, fuzz_seed
from tests.support.machine import surroundings

FOLDER = surroundings.clean_surroundings()
os.environ["OMP_NUM_THREADS"] = "1"  # several would only wait for each other
torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
fuzz_seed()  # one for all processes

FOLDERS = ("deployment", "e2e", "unit")
"""The longest first: what is distributed last should be short."""
WITH_IMAGE = {f"tests/deployment/test_{name}.py" for name in ("compose", "container", "kubernetes")}
"""Modules with tests that need the image, which takes minutes to build."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; units fill up at the end."""
    items.sort(key=lambda item: FOLDERS.index(item.path.parent.name))  # stable: modules stay as they are


class ByServer(LoadScopeScheduling):  # type: ignore[misc]
    """Which process gets which tests: what shares a server or the image goes to one, units go one by one.

    ``--dist loadgroup`` would do it by marks, but pytest-xdist 3.8 sets them where pytest 9.2 doesn't look.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::", maxsplit=1)[0]
        if module.startswith("tests/unit/"):
            return nodeid
        return "image" if module in WITH_IMAGE else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    """Distribute the tests of several processes by :class:`ByServer`."""
    return ByServer(config, log)


@pytest.fixture(scope="session", autouse=True)
def default_ports_taken() -> Iterator[None]:
    """Occupy ports 5000 to 5004, as a server does that the person who tests has started: no test may need them."""
    with contextlib.ExitStack() as stack:
        for port in range(5000, 5005):
            with contextlib.suppress(OSError):  # such a server, or other tests, have it
                taken = stack.enter_context(socket.socket())
                taken.bind(("127.0.0.1", port))
                taken.listen()
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis has the run's seed, too: without one it takes another at each run, and examples of runs before."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(fuzz_seed())


def pytest_unconfigure() -> None:
    """Remove this run's home and cache."""
    surroundings.remove(FOLDER)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the seed at the end of every run, also of one with -q."""
    terminalreporter.write_line(f"fuzzing: repeat it with {VARIABLE}={fuzz_seed()}")
