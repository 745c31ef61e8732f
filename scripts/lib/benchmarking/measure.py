"""The figures of one start of one contender: time to READY, load, memory."""

from __future__ import annotations

import http.client
import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.lib.benchmarking.contenders import Answer, Contender
from scripts.lib.console import CommandError
from scripts.lib.server import START_TIMEOUT

POLL_SECONDS = 0.05
"""Seconds between two questions whether a worker is READY: the error of a start's time, at most."""
WARM_UP_REQUESTS = 5
"""Requests a worker before anything is measured."""
REQUEST_TIMEOUT = 120.0
"""Seconds that a request may take."""
PROBABILITY_TOLERANCE = 1e-3
"""How far the probabilities in one contender's answers to one picture may lie apart (float sums vary)."""

Sample = dict[str, float]
"""The figures of one start: name (see ``report.figures``) to value."""


@dataclass(frozen=True)
class Picture:
    """A picture that is sent; ``width`` and ``height`` in px."""

    name: str
    content: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Load:
    """A closed loop: ``latencies`` of all requests, and the ``seconds`` from first to last, in seconds."""

    seconds: float
    latencies: tuple[float, ...]

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie, interpolated linearly between neighbours.

    The definition is number 7 of Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996
    (numpy's default).

    Raises:
        ValueError: there are no values, or the share is out of range.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"percentile of {len(values)} values at {share}: expected at least one, and a share of 0 to 1")
    ordered = sorted(values)
    position = (len(ordered) - 1) * share
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


class Client:
    """Sends pictures to one contender and watches its answers: all 200, and the same for the same picture."""

    def __init__(self, contender: Contender, pictures: Sequence[Picture]) -> None:
        self.contender, self.pictures = contender, pictures
        self.answers: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the contender, for one thread."""
        host, port, _ = self.contender.address
        return http.client.HTTPConnection(host, port, timeout=REQUEST_TIMEOUT)

    def send(self, connection: http.client.HTTPConnection, number: int) -> float:
        """Send the picture whose turn it is at request ``number``; returns the seconds to the end of its answer.

        Raises:
            CommandError: the answer isn't 200, isn't understood, or differs from the one before.
        """
        picture = self.pictures[number % len(self.pictures)]
        start = time.perf_counter()
        try:
            connection.request("PUT", self.contender.address[2], picture.content)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(
                f"{self.contender.name} didn't answer {picture.name}: {type(error).__name__}: {error}"
            ) from None
        took = time.perf_counter() - start
        if response.status != 200:
            raise CommandError(
                f"{self.contender.name} answered {picture.name} with {response.status}, expected 200: {body[:300]!r}"
            )
        self._compare(picture, body)
        return took

    def _compare(self, picture: Picture, body: bytes) -> None:
        try:
            answer = self.contender.parse(body)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CommandError(
                f"{self.contender.name} answered {picture.name} with something that isn't a classification: "
                f"{body[:300]!r}"
            ) from None
        with self._lock:
            first = self.answers.setdefault(picture.name, answer)
        if answer.label != first.label or abs(answer.probability - first.probability) > PROBABILITY_TOLERANCE:
            raise CommandError(
                f"{self.contender.name} doesn't always give the same answer to {picture.name}: {first}, then {answer}"
            )

    def closed_loop(self, requests: int, concurrency: int) -> Load:
        """``requests`` requests from ``concurrency`` connections, each sending its next when it has its answer.

        Raises:
            CommandError: a request failed (the first failure is told).
        """
        numbers = itertools.count()
        latencies: list[float] = []
        failures: list[BaseException] = []
        gate = threading.Barrier(concurrency + 1)

        def run() -> None:
            connection = self.connect()
            gate.wait()
            try:
                while not failures and (number := next(numbers)) < requests:
                    latencies.append(self.send(connection, number))
            except BaseException as error:
                failures.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=run, daemon=True) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        gate.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        if failures:
            raise failures[0]
        return Load(seconds, tuple(latencies))


def start_timed(contender: Contender, timeout: float = START_TIMEOUT) -> float:
    """Start a contender and wait for all its workers.

    Args:
        contender: is stopped by the caller, also after a failure.
        timeout: seconds at most.

    Returns:
        Seconds from the launch of the command to the first READY worker.

    Raises:
        CommandError: it doesn't start, or not in time.
    """
    begin = time.perf_counter()
    contender.start()
    first: float | None = None
    while True:
        ready, wanted = contender.ready()
        now = time.perf_counter() - begin
        if ready and first is None:
            first = now
        if first is not None and ready >= wanted:
            return first
        if now > timeout:
            raise CommandError(f"{contender.name}: {ready} of {wanted} workers are READY after {timeout:.0f} s")
        time.sleep(POLL_SECONDS)


def memory(pid: int) -> Sample:
    """What a process holds, in bytes: ``rss``, and on Linux ``pss`` and ``private`` too.

    ``pss`` counts a page that n processes share as 1/n, ``private`` (USS) not at all, ``rss`` in full.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return {"rss": float(psutil.Process(pid).memory_info().rss)}
    return parse_smaps(text)


def parse_smaps(text: str) -> Sample:
    """``rss``, ``pss`` and ``private`` in bytes, from the content of Linux' ``smaps_rollup`` (in kB)."""
    kilobytes: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        key, _, value = line.partition(":")
        kilobytes[key] = int(value.split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"] * 1024.0, "pss": kilobytes["Pss"] * 1024.0, "private": private * 1024.0}


def processor_time(pid: int) -> float:
    """Processor seconds, user and system, that a process has taken since its start."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def measure(client: Client, requests: int, concurrencies: Sequence[int]) -> Sample:
    """Start the contender, load it, read its workers' memory, stop it.

    Args:
        client: of a contender that doesn't run.
        requests: requests at each concurrency.
        concurrencies: connections at a time, one closed loop each.

    Returns:
        ``start_s`` and ``start_cpu`` (processor seconds of a worker until it was READY); ``rss``,
        ``pss``, ``private`` in bytes, the mean of the workers; and for each concurrency n
        ``c<n>_throughput`` in requests/s and ``c<n>_p50``, ``_p95``, ``_p99`` in seconds.

    Raises:
        CommandError: it doesn't start, or a request fails.
    """
    contender = client.contender
    try:
        sample: Sample = {"start_s": start_timed(contender)}
        pids = contender.worker_pids()
        sample["start_cpu"] = sum(map(processor_time, pids)) / len(pids)
        client.closed_loop(WARM_UP_REQUESTS * max(1, len(pids)), max(1, len(pids)))
        for concurrency in concurrencies:
            load = client.closed_loop(requests, concurrency)
            sample[f"c{concurrency}_throughput"] = load.throughput
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                sample[f"c{concurrency}_{name}"] = percentile(load.latencies, share)
        each = [memory(pid) for pid in pids]
        for key in each[0]:
            sample[key] = sum(worker[key] for worker in each) / len(each)
        return sample
    finally:
        contender.stop()
