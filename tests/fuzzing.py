"""Hostile requests against a running server, and what is promised about it."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from scripts.lib.server import find_server
from tests.e2e.conftest import Running
from tests.golden import CHELSEA
from tests.hostile import Input, inputs, request
from tests.wire import Reply, exchange

ANSWER_TIMEOUT_S = 120
"""A machine that does other things as well answers late; what never answers is what is looked for."""
INCOMPLETE_TIMEOUT_S = 0.2
"""How long an answer to an unfinished request is waited for; there need not be one."""
GROWTH_BYTES = {"java": 400e6, "worker": 150e6}
"""Memory that a process may have more at the end. Python and libc keep some of what was freed; the JVM fills its heap,
whose limit is in config.properties, before it collects."""
GOOD = request(CHELSEA.read_bytes(), method="PUT")


@dataclass
class Report:
    """What became of hostile and good requests. Memory in bytes, by the name of the process."""

    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    improper: list[tuple[Input, Reply]] = field(default_factory=list)
    good: list[Reply] = field(default_factory=list)
    alone: list[Reply] = field(default_factory=list)
    pids: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    memory: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))

    def broken_promises(self) -> list[str]:
        """A sentence for each promise that wasn't kept."""
        found = [
            f"{one.kind}: {reply.status} {reply.body[:200]!r} after {reply.seconds:.1f} s to {one.raw[:200]!r}"
            for one, reply in self.improper
        ]
        found += [f"a good request was answered with {r.status} {r.body[:200]!r}" for r in self.good if r.status != 200]
        if self.pids[0] != self.pids[1]:
            found.append(f"workers died: {sorted(self.pids[0])} became {sorted(self.pids[1])}")
        before, after = self.memory
        found += [
            f"{name} grew from {before[name] / 1e6:.0f} to {size / 1e6:.0f} MB"
            for name, size in after.items()
            if name in before and size - before[name] > GROWTH_BYTES[name.split()[0]]
        ]
        return found

    def text(self) -> str:
        """The figures, a line each."""
        lines = [f"{sum(self.kinds.values()):,} hostile requests of {len(self.kinds)} kinds"]
        lines += [f"  {name:<28}{count:>8,}" for name, count in sorted(self.answers.items())]
        lines.append(
            f"{len(self.good):,} good requests beside them, {sum(r.status == 200 for r in self.good):,} served"
        )
        for name, replies in (("without", self.alone), ("beside", self.good)):
            if replies:
                p50, p99 = np.percentile([r.seconds for r in replies], (50, 99)) * 1000
                lines.append(f"  latency {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        before, after = self.memory
        lines += [
            f"  memory of {name}: {before.get(name, 0) / 1e6:.0f} → {size / 1e6:.0f} MB" for name, size in after.items()
        ]
        broken = self.broken_promises()
        return "\n".join([*lines, *(f"BROKEN: {one}" for one in broken[:20]), f"{len(broken)} promises broken"])


def fuzz(server: Running, count: int, seed: int, clients: int = 1, heavy: bool = False) -> Report:
    """Send ``count`` hostile requests from ``clients`` threads, and good ones beside them all the time."""
    report = Report()
    report.alone = [exchange(server.port, GOOD, ANSWER_TIMEOUT_S) for _ in range(30)]
    # the first inputs load what a worker loads late; memory is compared from then on
    warm = min(count // 10, 500)
    _send(server.port, inputs(seed + 1, heavy=False), warm, Report())
    before = _processes(server)
    with _good_requests(server.port, report.good):
        shares = [count // clients + (index < count % clients) for index in range(clients)]
        threads = [
            threading.Thread(target=_send, args=(server.port, inputs(seed + 1000 * index, heavy), share, report))
            for index, share in enumerate(shares)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    after = _processes(server)
    report.pids = (
        {p for p, name in before[0].items() if "worker" in name},
        {p for p, n in after[0].items() if "worker" in n},
    )
    report.memory = (before[1], after[1])
    return report


def _send(port: int, source: Iterator[Input], count: int, report: Report) -> None:
    for one in itertools.islice(source, count):
        reply = exchange(port, one.raw, ANSWER_TIMEOUT_S if one.complete else INCOMPLETE_TIMEOUT_S)
        report.kinds[one.kind] += 1
        name = {None: "closed without an answer", -1: "no answer (unfinished)"}.get(reply.status, str(reply.status))
        if not reply.is_proper and one.complete and reply.status is not None:
            report.improper.append((one, reply))
        report.answers[name] += 1


@contextmanager
def _good_requests(port: int, replies: list[Reply]) -> Iterator[None]:
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                replies.append(exchange(port, GOOD, ANSWER_TIMEOUT_S))
            except OSError:
                replies.append(Reply(None, b"can't connect", 0))
            time.sleep(0.05)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _processes(server: Running) -> tuple[dict[int, str], dict[str, int]]:
    """Names of the server's Java and workers by process id, and their memory by name."""
    found = find_server(server.port)
    java = found.process() if found else None
    assert java is not None, "the server is gone"
    names, memory = {java.pid: "java"}, {"java": java.memory_info().rss}
    workers = [p for p in java.children() if "model_service_worker" in " ".join(p.cmdline())]
    for process in sorted(workers, key=lambda p: p.pid):
        names[process.pid] = name = f"worker {process.pid}"
        memory[name] = process.memory_info().rss
    return names, memory
