"""Faults that tests cause on purpose."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from scripts.lib.management import Management
from tests.endurance.fuzzing import GOOD
from tests.endurance.promises import Report
from tests.support.clients.wire import Reply, exchange
from tests.support.servers.running import Running

ANSWER_TIMEOUT_S = 120
RECOVERY_S = 10
RECOVERY_DEADLINE_S = 180


@dataclass
class Kills(Report):
    """What became of the requests while workers were killed, and seconds until all were READY again, for each kill."""

    served: int = 0
    failed: list[Reply] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)

    def figures(self) -> list[str]:
        return [
            f"{len(self.recoveries)} workers killed; {self.served:,} requests served, "
            f"{len(self.failed)} not: {dict(Counter(reply.status for reply in self.failed))}",
            f"READY again after {median(self.recoveries):.1f} s (median), {max(self.recoveries):.1f} s (max)",
        ]

    def broken(self) -> list[str]:
        found = [
            f"a request failed with {r.status} {r.body[:200]!r}, Retry-After {r.headers['retry-after']}"
            for r in self.failed
            if r.status != 503 or not r.headers["retry-after"] or not _says_so(r)
        ]
        if len(self.failed) > len(self.recoveries):
            found.append(f"{len(self.failed)} requests failed, more than workers were killed")
        return found

    def slow(self) -> list[str]:
        late = [seconds for seconds in self.recoveries if seconds > RECOVERY_S]
        return [f"READY again after {seconds:.1f} s, promised {RECOVERY_S}" for seconds in late]


def _says_so(reply: Reply) -> bool:
    """Whether a client, and the front door, are told that a worker died, and what to do."""
    error = json.loads(reply.body)
    return (error["type"], reply.headers["x-densenet-worker-died"]) == (
        "WorkerDied",
        "1",
    ) and "send it once more" in error["message"]


def kill_workers(server: Running, times: int, clients: int = 3) -> Kills:
    """Kill a worker (-9) ``times`` times under load, each when all are READY."""
    kills, stop, lock = Kills(), threading.Event(), threading.Lock()

    def send() -> None:
        while not stop.is_set():
            reply = exchange(server.port, GOOD, ANSWER_TIMEOUT_S)
            with lock:
                if reply.status == 200:
                    kills.served += 1
                else:
                    kills.failed.append(reply)

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
