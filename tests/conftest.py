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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares a server or the image in one process; these tests come first, those of units fill up."""
    items.sort(key=lambda item: FOLDERS.index(item.path.parent.name))  # stable: modules stay as they are
    for item in items:
        if "image" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("image"))
        elif item.path.parent.name != "unit":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


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
