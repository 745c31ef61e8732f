"""Load on a server, with every request accounted for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import requests

from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA

PICTURE = CHELSEA.read_bytes()
PAUSE_S = 0.05
"""After each answer: what is waited for beside the load, such as a worker's start, needs the processor, too."""


class Load:
    """Requests one after the other from several threads; keeps each answer's status, and counts the labels."""

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
                self._stop.wait(PAUSE_S)

    def wait_for(self, answers: int, timeout: float = 60) -> None:
        """Wait until so many more requests were answered."""
        goal = len(self.answers) + answers
        wait_until(lambda: len(self.answers) >= goal, timeout, lambda: f"only {len(self.answers)} answers")

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


@dataclass(frozen=True)
class Sent:
    """A request: when it began and ended (monotonic seconds), and its status or the client's error."""

    begun: float
    ended: float
    outcome: int | str


@contextmanager
def sending(url: str, threads: int) -> Iterator[list[Sent]]:
    """Requests without a pause while the block runs, in each thread until one isn't served: the server has gone."""
    sent: list[Sent] = []
    over = threading.Event()

    def send() -> None:
        outcome: int | str = 200
        with requests.Session() as session:
            while outcome == 200 and not over.is_set():
                begun = time.monotonic()
                try:
                    outcome = session.put(url, data=PICTURE, timeout=60).status_code
                except requests.RequestException as error:
                    outcome = type(error).__name__
                sent.append(Sent(begun, time.monotonic(), outcome))

    clients = [threading.Thread(target=send) for _ in range(threads)]
    for client in clients:
        client.start()
    try:
        yield sent
    finally:
        over.set()
        for client in clients:
            client.join()
