"""A long load below the capacity, with bad input in it, and what is promised about it."""

from __future__ import annotations

import csv
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from statistics import median

import numpy as np

from tests.endurance.fuzzing import ANSWER_TIMEOUT_S, GOOD, Hostile
from tests.endurance.promises import Report
from tests.support.clients.traffic import Answer, capacity, open_loop
from tests.support.clients.wire import exchange
from tests.support.hostile.http import inputs
from tests.support.machine.processes import Held, held
from tests.support.pictures.golden import CATS
from tests.support.servers.running import Running

GROWTH = 0.03
"""Of memory, at most."""
WARM_UP = 0.1
"""Share of the time, in which caches fill; at least ``WARM_UP_S`` seconds, at most half of the time."""
WARM_UP_S = 60
BAD_CLIENTS = 8
"""Bad requests at a time."""
SEED = 1
"""Of the bad input: the same in every run."""
CAPACITY_S = 30
"""How long the capacity is measured, at most."""
SAMPLE_EVERY_S = 10
LEAST_SAMPLES = 60
"""A short run is sampled more often."""
TELL_EVERY_S = 60


@dataclass
class Soak(Report):
    """What became of the requests, and samples of what the processes held: (seconds since the start, by name)."""

    capacity: float
    rate: float
    seconds: float
    label: str
    good: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    bad: Hostile = field(default_factory=Hostile)
    samples: list[tuple[float, dict[str, Held]]] = field(default_factory=list)
    cpu: float = 0.0

    def count(self, answer: Answer) -> None:
        """Take note of the answer to a good request."""
        as_promised = answer.status == 200 and answer.label == self.label
        self.good["served" if as_promised else f"{answer.status} {answer.body[:100]!r}"] += 1
        self.latencies.append(answer.seconds)

    def ends(self, part: float) -> list[list[dict[str, Held]]]:
        """The samples of the first and of the last ``part`` of the time after the warm-up."""
        warm = min(max(WARM_UP * self.seconds, WARM_UP_S), self.seconds / 2)
        length = (self.seconds - warm) * part
        return [
            [by_name for at, by_name in self.samples if start <= at <= start + length]
            for start in (warm, self.seconds - length)
        ]

    def levels(self, of: str, part: float, level: Callable[[list[float]], float]) -> dict[str, tuple[float, float]]:
        """The level of a figure in the first and in the last ``part``, by process.

        A decoding process is there only since the first picture that needs it, and a new one after one that ended.
        """
        first, last = self.ends(part)

        def at(end: list[dict[str, Held]], name: str) -> float:
            return level([float(getattr(by_name[name], of)) for by_name in end if name in by_name])

        names = set().union(*first) & set().union(*last)
        return {name: (at(first, name), at(last, name)) for name in sorted(names)}

    def memory(self) -> dict[str, tuple[float, float]]:
        """Bytes in the first and in the last tenth, medians.

        RSS of each process, which doesn't depend on its neighbours; PSS of all together, in which no page counts twice.
        """
        first, last = (median([sum(h.pss for h in by_name.values()) for by_name in end]) for end in self.ends(0.1))
        return {**self.levels("rss", 0.1, median), "all": (first, last)}

    def progress(self, at: float) -> str:
        """A line for people who wait."""
        by_name = self.samples[-1][1] if self.samples else {}
        memory = ", ".join(f"{name} {each.rss / 1e6:.0f}" for name, each in by_name.items())
        return (
            f"{at / 60:.1f} of {self.seconds / 60:.1f} min: {self.good['served']:,} served, "
            f"{self.good.total() - self.good['served']} not, {self.bad.answers.total():,} bad; MB: {memory}"
        )

    def figures(self) -> list[str]:
        p50, p99 = np.percentile(self.latencies, (50, 99)) * 1000
        lines = [
            f"capacity {self.capacity:.1f} requests/s; {self.rate:.1f}/s for {self.seconds:.0f} s; "
            f"client: {self.cpu:.2f} cores",
            f"{self.good.total():,} good requests, {self.good['served']:,} served as promised; "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
            f"{self.bad.answers.total():,} bad requests: {dict(sorted(self.bad.answers.items()))}",
        ]
        lines += [
            f"memory of {name} ({'PSS' if name == 'all' else 'RSS'}): {first / 1e6:.1f} → {last / 1e6:.1f} MB, "
            f"{last / first - 1:+.1%}"
            for name, (first, last) in self.memory().items()
        ]
        for what in ("files", "threads"):
            least, most = self.levels(what, 0.5, min), self.levels(what, 0.5, max)
            spans = (f"{n} {least[n][0]:g}-{most[n][0]:g} → {least[n][1]:g}-{most[n][1]:g}" for n in least)
            lines.append(f"{what}: {', '.join(spans)}")
        return lines

    def broken(self) -> list[str]:
        found = [f"{count} good requests: {what}" for what, count in self.good.items() if what != "served"]
        found += self.bad.broken()
        workers = [{name for name in by_name if name.startswith("worker")} for _, by_name in self.samples]
        if any(names != workers[0] for names in workers):
            found.append(f"workers died: {sorted(set.union(*workers))}")
        for what in ("files", "threads"):
            # a leak raises the least number; some come and go
            found += [
                f"{what} of {name}: {first:g} at least became {last:g}"
                for name, (first, last) in self.levels(what, 0.5, min).items()
                if last > first
            ]
        return found

    def slow(self) -> list[str]:
        # a decoding process is small and starts anew after a picture that ended it: it counts in the sum
        return [
            f"memory of {name} grew by {last / first - 1:.1%}, promised {GROWTH:.0%}"
            for name, (first, last) in self.memory().items()
            if last > first * (1 + GROWTH) and not name.startswith("decoder")
        ]

    def write(self, path: Path) -> None:
        """The samples as a CSV file, a line for each process and time."""
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["seconds", "process", *(each.name for each in fields(Held))])
            for at, by_name in self.samples:
                table.writerows([f"{at:.1f}", name, *astuple(each)] for name, each in by_name.items())


def soak(
    server: Running,
    workers: int,
    seconds: float,
    share: float,
    bad: float,
    tell: Callable[[str], object] = print,
) -> Soak:
    """Load a server that does nothing else.

    Args:
        server: with so many ``workers``.
        workers: of the server.
        seconds: how long; before that the capacity is measured for half a minute at most.
        share: of the capacity.
        bad: share of the requests that are bad input.
        tell: called with a line of progress every minute.
    """
    first = exchange(server.port, GOOD, ANSWER_TIMEOUT_S)
    label = json.loads(first.body)["label"]
    assert label in CATS, label
    most = capacity(server.port, GOOD, workers, min(CAPACITY_S, seconds / 2))
    report = Soak(most, share * most, seconds, label)
    used, start = time.process_time(), time.monotonic()
    with _bad_requests(server.port, report.rate * bad, report.bad), _sampled(server, report, start, tell):
        open_loop(server.port, GOOD, report.rate * (1 - bad), seconds, report.count)
    report.cpu = (time.process_time() - used) / (time.monotonic() - start)
    return report


@contextmanager
def _bad_requests(port: int, rate: float, hostile: Hostile) -> Iterator[None]:
    """Bad input at a constant rate while the block runs."""
    stop, start = threading.Event(), time.monotonic()

    def send() -> None:
        with ThreadPoolExecutor(BAD_CLIENTS) as pool:
            for number, one in enumerate(inputs(SEED)):
                if stop.wait(max(0.0, start + number / rate - time.monotonic())):
                    break
                pool.submit(hostile.send, port, one)

    with _beside(send, stop):
        yield


@contextmanager
def _sampled(server: Running, report: Soak, start: float, tell: Callable[[str], object]) -> Iterator[None]:
    """What the processes hold, now and then while the block runs."""
    stop, every = threading.Event(), min(SAMPLE_EVERY_S, report.seconds / LEAST_SAMPLES)

    def sample() -> None:
        told = 0.0
        for number in itertools.count():
            if stop.wait(max(0.0, start + number * every - time.monotonic())):
                break
            at = time.monotonic() - start
            report.samples.append((at, held(server)))
            if at - told >= TELL_EVERY_S:
                told = at
                tell(report.progress(at))

    with _beside(sample, stop):
        yield


@contextmanager
def _beside(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    """``work`` in a thread while the block runs."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            yield
        finally:
            stop.set()
        running.result()
