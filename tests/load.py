"""Load on a server, with every request accounted for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from tests.golden import CHELSEA

PICTURE = CHELSEA.read_bytes()


class Load:
    """Requests without a pause from several threads; keeps each answer's status, and counts the labels."""

    def __init__(self, url: str, threads: int = 3) -> None:
        self.url, self.answers, self._stop = url, list[int | str](), threading.Event()
        self.labels: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]

    def _send(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                try:
                    answer = session.put(self.url, data=PICTURE, timeout=60)
                    if answer.ok:
                        self.labels[answer.json()["label"]] += 1
                    self.answers.append(answer.status_code)
                except requests.RequestException as error:
                    self.answers.append(type(error).__name__)

    def wait_for(self, answers: int, timeout: float = 60) -> None:
        """Wait until so many more requests were answered."""
        goal, deadline = len(self.answers) + answers, time.monotonic() + timeout
        while len(self.answers) < goal:
            assert time.monotonic() < deadline, f"only {len(self.answers)} answers"
            time.sleep(0.05)

    def report(self, what: str) -> None:
        """Print how many requests were sent, answered with which status, and failed."""
        statuses = ", ".join(f"{count} × {status}" for status, count in Counter(self.answers).most_common())
        print(f"{what}: {len(self.answers)} sent; {statuses}; {dict(self.labels)}")


@contextmanager
def load(url: str, threads: int = 3) -> Iterator[Load]:
    """Load on ``url`` while the block runs."""
    running = Load(url, threads)
    for thread in running._threads:
        thread.start()
    try:
        running.wait_for(3)
        yield running
        running.wait_for(3)
    finally:
        running._stop.set()
        for thread in running._threads:
            thread.join()
