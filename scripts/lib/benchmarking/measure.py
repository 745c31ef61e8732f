"""The figures of one start of one contender: time to READY, load, memory."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import math
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.lib.benchmarking.contenders import Answer, Contender, HttpContender, Picture
from scripts.lib.console import CommandError
from scripts.lib.server import START_TIMEOUT

POLL_SECONDS = 0.05
"""Seconds between two questions whether a worker is READY: the error of a start's time, at most."""
OPEN_LOOP_CONNECTIONS = 128
"""Connections of an open loop; while all wait for an answer, due requests wait for one of them."""
REQUEST_TIMEOUT = 120.0
"""Seconds that a request may take."""
PROBABILITY_TOLERANCE = 1e-3
"""How far the probabilities in one contender's answers to one picture may lie apart (float sums vary)."""

Sample = dict[str, float]
"""The figures of one start: name (see ``report.figures``) to value."""


@dataclass(frozen=True)
class Plan:
    """What each start is measured with.

    ``requests``: at each concurrency and rate. ``concurrencies``: connections at a time, a closed
    loop each. ``rates``: arrivals a second, an open loop each. ``warm_up``: requests a worker
    before anything is measured.
    """

    requests: int
    concurrencies: tuple[int, ...]
    rates: tuple[float, ...] = ()
    warm_up: int = 20


@dataclass(frozen=True)
class Load:
    """A closed loop: ``latencies`` of all requests, and the ``seconds`` from first to last, in seconds."""

    seconds: float
    latencies: tuple[float, ...]

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


@dataclass(frozen=True)
class OpenLoad:
    """An open loop: ``latencies`` of the requests that were answered, in seconds from their scheduled time."""

    sent: int
    latencies: tuple[float, ...]

    @property
    def answered(self) -> float:
        """Share of the requests that were answered with 200, 0 to 1."""
        return len(self.latencies) / self.sent


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


class Probe(ABC):
    """One contender with its pictures; takes its figures, and watches that a picture's answer stays the same.

    Attributes:
        answers: the first answer to each picture, by its name.
    """

    def __init__(self, contender: Contender, pictures: Sequence[Picture]) -> None:
        self.contender, self.pictures = contender, pictures
        self.answers: dict[str, Answer] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def rehearse(self) -> None:
        """Start and stop it unmeasured, so that its files are in the system's cache.

        Raises:
            CommandError: it doesn't start.
        """

    @abstractmethod
    def measure(self, plan: Plan) -> Sample:
        """Start it, load it, read its memory, stop it.

        Returns:
            Of the figures in ``report.figures`` those that it has.

        Raises:
            CommandError: it doesn't start, or a request fails.
        """

    def record(self, picture: str, answer: Answer) -> None:
        """Take note of an answer to ``picture``.

        Raises:
            CommandError: it differs from the first one.
        """
        with self._lock:
            first = self.answers.setdefault(picture, answer)
        if answer.label != first.label or abs(answer.probability - first.probability) > PROBABILITY_TOLERANCE:
            raise CommandError(
                f"{self.contender.name} doesn't always give the same answer to {picture}: {first}, then {answer}"
            )


class Client(Probe):
    """Sends pictures to a server: all are to be answered with 200 in a closed loop."""

    def __init__(self, contender: HttpContender, pictures: Sequence[Picture]) -> None:
        super().__init__(contender, pictures)
        self.server = contender
        self.requests = [contender.request(picture) for picture in pictures]

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the contender, for one thread."""
        return http.client.HTTPConnection(*self.server.address, timeout=REQUEST_TIMEOUT)

    def _exchange(self, connection: http.client.HTTPConnection, number: int) -> tuple[int, bytes]:
        """Status and body of the answer to request ``number``, which sends the picture whose turn it is."""
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # the server has closed it while it was idle
        request = self.requests[number % len(self.requests)]
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        return response.status, response.read()

    def send(self, connection: http.client.HTTPConnection, number: int) -> float:
        """Send the picture whose turn it is at request ``number``; returns the seconds to the end of its answer.

        Raises:
            CommandError: the answer isn't 200, isn't understood, or differs from the one before.
        """
        picture = self.pictures[number % len(self.pictures)]
        start = time.perf_counter()
        try:
            status, body = self._exchange(connection, number)
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(
                f"{self.contender.name} didn't answer {picture.name}: {type(error).__name__}: {error}"
            ) from None
        took = time.perf_counter() - start
        if status != 200:
            raise CommandError(
                f"{self.contender.name} answered {picture.name} with {status}, expected 200: {body[:300]!r}"
            )
        self._compare(picture, body)
        return took

    def _compare(self, picture: Picture, body: bytes) -> None:
        try:
            answer = self.server.parse(body)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CommandError(
                f"{self.contender.name} answered {picture.name} with something that isn't a classification: "
                f"{body[:300]!r}"
            ) from None
        self.record(picture.name, answer)

    def closed_loop(self, requests: int, concurrency: int) -> Load:
        """``requests`` requests from ``concurrency`` connections, each sending its next when it has its answer.

        Raises:
            CommandError: a request failed (the first failure is told).
        """
        latencies: list[float] = []

        def one(connection: http.client.HTTPConnection, number: int) -> None:
            latencies.append(self.send(connection, number))

        seconds = self._together(requests, concurrency, one)
        return Load(seconds, tuple(latencies))

    def open_loop(self, requests: int, rate: float) -> OpenLoad:
        """``requests`` requests, one every 1/``rate`` seconds, whatever became of those before.

        A latency counts from the time at which its request was due. A client that waited for a
        stalled server before it sent the next one would leave out just those that wait longest
        (Tene, "How NOT to Measure Latency", calls it coordinated omission).

        Raises:
            CommandError: an answer isn't understood, or differs from the one before. A request
                that isn't answered, or not with 200, only counts as not answered.
        """
        latencies: list[float] = []
        begin = time.perf_counter()

        def one(connection: http.client.HTTPConnection, number: int) -> None:
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                status, body = self._exchange(connection, number)
            except (OSError, http.client.HTTPException):
                connection.close()
                return
            if status == 200:
                latencies.append(time.perf_counter() - due)
                self._compare(self.pictures[number % len(self.pictures)], body)

        self._together(requests, min(requests, OPEN_LOOP_CONNECTIONS), one)
        return OpenLoad(requests, tuple(latencies))

    def _together(self, requests: int, threads: int, one: Callable[[http.client.HTTPConnection, int], None]) -> float:
        """Call ``one`` for each request number in ``threads`` threads, a connection each; returns the seconds."""
        numbers = itertools.count()
        failures: list[BaseException] = []
        gate = threading.Barrier(threads + 1)

        def run() -> None:
            connection = self.connect()
            gate.wait()
            try:
                while not failures and (number := next(numbers)) < requests:
                    one(connection, number)
            except BaseException as error:
                failures.append(error)
            finally:
                connection.close()

        running = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
        for thread in running:
            thread.start()
        gate.wait()
        start = time.perf_counter()
        for thread in running:
            thread.join()
        seconds = time.perf_counter() - start
        if failures:
            raise failures[0]
        return seconds

    def rehearse(self) -> None:
        try:
            start_timed(self.server)
        finally:
            self.server.stop()

    def measure(self, plan: Plan) -> Sample:
        server = self.server
        try:
            sample: Sample = {"start_s": start_timed(server)}
            pids = server.worker_pids()
            sample["start_cpu"] = sum(map(processor_time, pids)) / len(pids)
            self.closed_loop(plan.warm_up * max(1, len(pids)), max(1, len(pids)))
            for concurrency in plan.concurrencies:
                load, cpu = timed(server, functools.partial(self.closed_loop, plan.requests, concurrency))
                sample |= load_figures(f"c{concurrency}", load, cpu)
            for rate in plan.rates:
                sample |= open_figures(f"r{rate:g}", self.open_loop(plan.requests, rate))
            return sample | memory_figures(server, pids)
        finally:
            server.stop()


def start_timed(contender: HttpContender, timeout: float = START_TIMEOUT) -> float:
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


def family_time(processes: Sequence[psutil.Process]) -> float:
    """Processor seconds that ``processes`` have taken, and those below them that have ended since."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def timed(contender: Contender, work: Callable[[], Load]) -> tuple[Load, float]:
    """A load, and the processor seconds that all the contender's processes took for it."""
    before = family_time(contender.processes())
    load = work()
    return load, family_time(contender.processes()) - before


def load_figures(prefix: str, load: Load, cpu: float) -> Sample:
    """Requests/s, percentiles in seconds, and processor seconds a request, of a closed loop."""
    return {
        f"{prefix}_throughput": load.throughput,
        **percentiles(prefix, load.latencies),
        f"{prefix}_cpu": cpu / len(load.latencies),
    }


def open_figures(prefix: str, load: OpenLoad) -> Sample:
    """The share that was answered, 0 to 1, and percentiles in seconds if any was, of an open loop."""
    return {
        f"{prefix}_answered": load.answered,
        **(percentiles(prefix, load.latencies) if load.latencies else {}),
    }


def percentiles(prefix: str, latencies: Sequence[float]) -> Sample:
    """The three percentiles that the report tells."""
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return {f"{prefix}_{name}": percentile(latencies, share) for name, share in shares}


def memory_figures(contender: Contender, pids: Sequence[int]) -> Sample:
    """Memory in bytes: the mean of the workers, and on Linux ``total_pss``, that of all the contender's processes."""
    each = [memory(pid) for pid in pids]
    sample = {key: sum(worker[key] for worker in each) / len(each) for key in each[0]}
    total = 0.0
    for process in contender.processes():
        try:
            total += memory(process.pid)["pss"]
        except psutil.NoSuchProcess:
            continue  # a helper that has just ended
        except KeyError:
            return sample  # this system doesn't tell
    return {**sample, "total_pss": total}
