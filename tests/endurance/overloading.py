"""More requests than a server can serve, and what is promised about them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tests.endurance.fuzzing import GOOD
from tests.endurance.promises import Report
from tests.support.clients.traffic import Answer, capacity, closed_loop, open_loop, served
from tests.support.servers.running import Running

REFUSALS = {429, 503}
REFUSED_WITHIN_S = 0.1
LEAST_THROUGHPUT = 0.9
"""Of the capacity."""
ALONE_S = 1.0
"""How long single requests are sent, before and after, to compare their latency."""
RECOVERED = 2
"""Median latency of single requests after, to that before, at most."""


@dataclass
class Overload(Report):
    """Answers to ``rate`` requests a second in ``seconds``; ``cpu``: cores that the client took.

    ``capacities`` were measured before and after, since a shared machine's changes by a tenth within minutes.
    """

    capacities: list[float]
    rate: float
    seconds: float
    start: float = 0.0
    cpu: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    alone: tuple[list[Answer], list[Answer]] = field(default_factory=lambda: ([], []))

    @property
    def capacity(self) -> float:
        """Pictures a second; the mean of what was measured."""
        return sum(self.capacities) / len(self.capacities)

    @property
    def refused(self) -> list[Answer]:
        """The answers that say: too many."""
        return [answer for answer in self.answers if answer.status in REFUSALS]

    @property
    def throughput(self) -> float:
        """Pictures served a second while the load lasted, to the capacity."""
        return served(self.answers, self.start, self.seconds) / self.capacity

    def figures(self) -> list[str]:
        statuses = Counter(answer.status for answer in self.answers)
        capacities = " and ".join(f"{capacity:.1f}" for capacity in self.capacities)
        lines = [
            f"capacity {capacities} requests/s; sent {self.rate:.1f}/s for {self.seconds:.0f} s: "
            f"{len(self.answers):,} requests, answered with {dict(statuses)}",
            f"throughput {self.throughput:.3f} of the capacity",
            f"client: {self.cpu:.2f} cores, sent {_ms([a.sent - a.due for a in self.answers])} after they were due",
            f"served after {_ms([a.seconds for a in self.answers if a.status == 200])}",
            f"the queue was empty {max(a.ended for a in self.answers) - self.start - self.seconds:.2f} s after the end",
        ]
        if self.refused:
            lines.append(f"refused after {_ms([a.seconds for a in self.refused])}")
        for name, answers in zip(("before", "after"), self.alone):
            lines.append(f"a single request {name}: the first {answers[0].seconds * 1000:.0f} ms, {_ms_of(answers)}")
        return lines

    def broken(self) -> list[str]:
        strange = Counter(a.status for a in self.answers if a.status not in {200, *REFUSALS})
        found = [f"{count} requests were answered with {status}" for status, count in strange.items()]
        mute = sum(not answer.says_when_again for answer in self.refused)
        if mute:
            found.append(f"{mute} of {len(self.refused)} refusals have no Retry-After")
        if not self.refused:
            found.append("nothing was refused, so it was no overload")
        lost = [answer.status for answer in self.alone[1] if answer.status != 200]
        return found + ([f"after the queue was empty, single requests were answered with {lost}"] if lost else [])

    def slow(self) -> list[str]:
        found = []
        if self.throughput < LEAST_THROUGHPUT:
            found.append(f"throughput is {self.throughput:.3f} of the capacity, promised {LEAST_THROUGHPUT}")
        late = float(np.percentile([a.seconds for a in self.refused], 99)) if self.refused else 0.0
        if late > REFUSED_WITHIN_S:
            found.append(f"p99 of the refusals is {late * 1000:.0f} ms, promised {REFUSED_WITHIN_S * 1000:.0f}")
        before, after = (float(np.median([a.seconds for a in answers])) for answers in self.alone)
        if after > RECOVERED * before:
            found.append(f"a single request took {before * 1000:.0f} ms before, {after * 1000:.0f} ms after")
        return found


def _ms(seconds: list[float]) -> str:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return f"{p50:.0f} ms (p50), {p99:.0f} (p99), {max(seconds) * 1000:.0f} (max)"


def _ms_of(answers: list[Answer]) -> str:
    return _ms([answer.seconds for answer in answers])


def overload(server: Running, workers: int, factor: float, seconds: float, port: int | None = None) -> Overload:
    """Send ``factor`` times the capacity, at a constant rate.

    Args:
        server: with so many ``workers``.
        workers: of the server.
        factor: of the capacity.
        seconds: how long; the capacity is measured for an eighth of that before and after, at the server itself.
        port: where the load is sent; None: straight at the server.
    """
    port = port or server.port
    alone = closed_loop(port, GOOD, 1, ALONE_S)
    most = capacity(server.port, GOOD, workers, seconds / 8)
    report = Overload([most], factor * most, seconds, alone=(alone, []))
    used = time.process_time()
    report.start = open_loop(port, GOOD, report.rate, seconds, report.answers.append)
    report.cpu = (time.process_time() - used) / (time.monotonic() - report.start)
    report.alone[1].extend(closed_loop(port, GOOD, 1, ALONE_S))
    report.capacities.append(capacity(server.port, GOOD, workers, seconds / 8))
    return report
