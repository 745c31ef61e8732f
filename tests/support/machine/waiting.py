"""Waiting for what a test caused, polled, with a deadline; and doing something again and again meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import requests


def wait_until(
    condition: Callable[[], object], timeout: float = 60, otherwise: Callable[[], str] = str, pause: float = 0.1
) -> None:
    """Poll until ``condition()`` is true; whoever doesn't answer HTTP yet makes it false.

    Args:
        condition: what to wait for; an assertion in it ends the waiting.
        timeout: seconds at most.
        otherwise: what a failing test says: a log, or what was counted.
        pause: seconds between two polls.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s; {otherwise()}"
        time.sleep(pause)


@contextmanager
def repeating(action: Callable[[], object], pause: float = 0) -> Iterator[None]:
    """Repeat ``action`` in a thread while the block runs, with so many seconds between two of them."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            action()
            over.wait(pause)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
