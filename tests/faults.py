"""Faults that tests cause on purpose."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from scripts.lib.management import Management
from tests.e2e.conftest import Running
from tests.fuzzing import GOOD
from tests.wire import exchange

ANSWER_TIMEOUT_S = 120
RECOVERY_DEADLINE_S = 180


@dataclass
class Kills:
    """What became of the requests while workers were killed, and seconds until all were READY again, for each kill."""

    answers: Counter[int | None] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Requests that weren't served."""
        return sum(count for status, count in self.answers.items() if status != 200)

    def text(self) -> str:
        """The figures, a line each."""
        slowest = max(self.recoveries)
        return (
            f"{len(self.recoveries)} workers killed; {self.answers.total()} requests, answered with "
            f"{dict(self.answers)}; READY again after {slowest:.1f} s at most"
        )


def kill_workers(server: Running, times: int, clients: int = 3) -> Kills:
    """Kill a worker (-9) ``times`` times under load, each when all are READY."""
    kills, stop = Kills(), threading.Event()

    def send() -> None:
        while not stop.is_set():
            kills.answers[exchange(server.port, GOOD, ANSWER_TIMEOUT_S).status] += 1

    threads = [threading.Thread(target=send) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        management = Management(server.management)
        for turn in range(times):
            workers = management.status().workers
            victim = workers[turn % len(workers)].pid
            os.kill(victim, signal.SIGKILL)
            start = time.monotonic()
            while True:
                status = management.status()
                if status.ready == len(workers) and victim not in {w.pid for w in status.workers}:
                    break
                assert time.monotonic() - start < RECOVERY_DEADLINE_S, "the worker didn't come back"
                time.sleep(0.1)
            kills.recoveries.append(time.monotonic() - start)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return kills
