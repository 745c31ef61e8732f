"""Hostile requests against a running server, and what is promised about it."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tests.endurance.promises import Report
from tests.support.clients.wire import Reply, conversation, exchange
from tests.support.hostile.grpc import Call, Outcome, calls, channels
from tests.support.hostile.http import Input, inputs, request
from tests.support.machine.processes import server_processes
from tests.support.machine.waiting import repeating
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running

ANSWER_TIMEOUT_S = 120
"""A machine that does other things as well answers late; what never answers is what is looked for."""
INCOMPLETE_TIMEOUT_S = 0.2
"""How long an answer to an unfinished request is waited for; there need not be one."""
GROWTH_BYTES = {"java": 400e6, "worker": 150e6, "decoder": 150e6}
"""Memory that a process may have more at the end. Python and libc keep some of what was freed; the JVM fills its heap,
whose limit is in config.properties, before it collects."""
PAUSE_S = 0.05
"""Between two good requests."""
SLOWER = 3
"""The p99 of good requests beside hostile ones, to that without them, at most."""
GOOD = request(CHELSEA.read_bytes(), method="PUT")
NOT_CONNECTED = Reply(None, b"can't connect", 0)


@dataclass
class Hostile:
    """What became of hostile requests: answers by status, requests by kind, and improper answers."""

    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    improper: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, port: int, one: Input) -> None:
        """Send a hostile request and take note of its answer."""
        timeout = ANSWER_TIMEOUT_S if one.complete else INCOMPLETE_TIMEOUT_S
        try:
            replies = conversation(port, one.raw, timeout, one.answers, one.later, one.ending)
        except OSError:
            replies = [NOT_CONNECTED]
        for reply in replies:
            name = {None: "closed without an answer", -1: "no answer (unfinished)"}.get(reply.status, str(reply.status))
            allowed = reply.is_proper or not one.complete or reply.status is None
            said = f"{reply.status} {reply.body[:100]!r} after {reply.seconds:.1f} s to {one.raw[:200]!r}"
            self._note(one.kind, name, None if allowed and reply is not NOT_CONNECTED else said)

    def call(self, make: Callable[[Call], Outcome], one: Call) -> None:
        """Make a hostile call over gRPC and take note of its answer."""
        outcome = make(one)
        said = f"{outcome.status} {outcome.details[:200]!r} {outcome.answers!r:.200} to {one.requests!r:.200}"
        self._note(one.kind, f"gRPC {outcome.status}", None if outcome.is_proper else said)

    def _note(self, kind: str, answer: str, improper: str | None) -> None:
        with self._lock:
            self.kinds[kind] += 1
            self.answers[answer] += 1
            if improper:
                self.improper.append(f"{kind}: {improper}")

    def broken(self) -> list[str]:
        """A sentence for each improper answer."""
        return self.improper


@dataclass
class Fuzzing(Report):
    """What became of hostile requests, and of good ones alone (``alone``) and beside them.

    ``memory``: RSS in bytes by the name of the process, before and after.
    """

    hostile: Hostile = field(default_factory=Hostile)
    good: list[Reply] = field(default_factory=list)
    alone: list[Reply] = field(default_factory=list)
    memory: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    seed: int = 0

    def broken(self) -> list[str]:
        good = (*self.good, *self.alone)
        found = self.hostile.broken()
        found += [f"a good request was answered with {r.status} {r.body[:200]!r}" for r in good if r.status != 200]
        workers = [{name for name in memory if name.startswith("worker")} for memory in self.memory]
        if workers[0] != workers[1]:
            found.append(f"workers died: {sorted(workers[0])} became {sorted(workers[1])}")
        before, after = self.memory
        found += [
            f"{name} grew from {before[name] / 1e6:.0f} to {size / 1e6:.0f} MB"
            for name, size in after.items()
            if name in before and size - before[name] > GROWTH_BYTES[name.split()[0]]
        ]
        return found

    def slow(self) -> list[str]:
        ratio = _p99(self.good) / _p99(self.alone)
        return [f"p99 of good requests is {ratio:.1f} times that without the others"] if ratio > SLOWER else []

    def figures(self) -> list[str]:
        kinds = self.hostile.kinds
        lines = [f"{kinds.total():,} hostile requests of {len(kinds)} kinds, seed {self.seed}"]
        lines += [f"  {name:<28}{count:>8,}" for name, count in sorted(self.hostile.answers.items())]
        for name, replies in (("without them", self.alone), ("beside them", self.good)):
            served = [r.seconds for r in replies if r.status == 200]
            lines.append(
                f"{len(replies):,} good requests {name}, {len(served):,} served; "
                f"p50 {np.median(served) * 1000:.0f} ms, p99 {_p99(replies) * 1000:.0f} ms"
            )
        lines.append(f"  p99 beside to p99 without: {_p99(self.good) / _p99(self.alone):.2f}")
        before, after = self.memory
        lines.append(f"  workers that died: {sum(name not in after for name in before if name.startswith('worker'))}")
        return lines + [
            f"  memory of {name}: {before.get(name, 0) / 1e6:.0f} → {size / 1e6:.0f} MB" for name, size in after.items()
        ]


def _p99(replies: list[Reply]) -> float:
    return float(np.percentile([reply.seconds for reply in replies], 99))


def fuzz(
    server: Running,
    count: int,
    seed: int,
    clients: int = 1,
    heavy: bool = False,
    alone: int = 30,
    rest_s: float = 0,
    port: int | None = None,
    over_grpc: int = 0,
) -> Fuzzing:
    """Send hostile requests, and good ones beside them all the time.

    Args:
        server: whose processes are watched.
        count: hostile requests.
        seed: of their random choices.
        clients: threads that send them.
        heavy: with bombs.
        alone: good requests without them, before and again after.
        rest_s: seconds after which memory is judged at the end.
        port: where they are sent; None: straight at the server.
        over_grpc: of ``count``, how many are calls of gRPC, straight at the server.
    """
    port, report = port or server.port, Fuzzing(seed=seed)
    # the first inputs load what a worker loads late; memory is compared from then on
    for one in itertools.islice(inputs(seed + 1), min(count // 10, 500)):
        Hostile().send(port, one)
    report.memory = (_memory(server), {})
    _send_good(port, report.alone, alone)
    with (
        repeating(lambda: _send_good(port, report.good, 1)),
        channels(server.port) as make,
        ThreadPoolExecutor(clients + 1) as pool,
    ):
        over_http = count - over_grpc
        shares = [over_http // clients + (index < over_http % clients) for index in range(clients)]
        sources = (inputs(seed + 1000 * index, heavy) for index in range(clients))
        running = [pool.submit(_send, port, *each, report.hostile) for each in zip(sources, shares)]
        running.append(pool.submit(_call, make, seed, over_grpc, report.hostile))
        for each in running:
            each.result()
    _send_good(port, report.alone, alone)
    time.sleep(rest_s)
    report.memory[1].update(_memory(server))
    return report


def _send(port: int, source: Iterator[Input], count: int, hostile: Hostile) -> None:
    for one in itertools.islice(source, count):
        hostile.send(port, one)


def _call(make: Callable[[Call], Outcome], seed: int, count: int, hostile: Hostile) -> None:
    for one in itertools.islice(calls(seed), count):
        hostile.call(make, one)


def _send_good(port: int, replies: list[Reply], count: int) -> None:
    """Good requests at the pace of one client that pauses."""
    for _ in range(count):
        try:
            replies.append(exchange(port, GOOD, ANSWER_TIMEOUT_S))
        except OSError:
            replies.append(NOT_CONNECTED)
        time.sleep(PAUSE_S)


def _memory(server: Running) -> dict[str, int]:
    """RSS in bytes by the name of the process."""
    return {name: process.memory_info().rss for name, process in server_processes(server).items()}
