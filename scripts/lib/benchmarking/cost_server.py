"""This project's server under load: requests a second, latency, processor time of all its processes."""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.client.asynchronous import FIRST_PAUSE_S
from scripts.lib.benchmarking.contenders import free_ports
from scripts.lib.benchmarking.measure import family_time, percentile
from scripts.lib.console import CommandError
from scripts.lib.paths import MODEL_NAME
from scripts.lib.server import LOOPBACK, Server, run_folder, start_server, stop_server, wait_until_ready

START_S = 4.0
"""Seconds of unmeasured load on a server that has just started: Java compiles what it does often."""
LEAD_S = 0.5
"""Seconds of unmeasured load, at least, before each measurement."""
REFUSAL_PAUSE_S = FIRST_PAUSE_S
"""Seconds after a 503, as ``predict.py`` waits: without, the clients would keep the server busy with refusals."""
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Load:
    """A stretch of a closed loop, in which every connection sends its next request when it has its answer.

    Attributes:
        seconds: that it lasted.
        latencies: of the requests that were answered with 200 meanwhile, in seconds; at least one.
        refused: requests that were answered with 503 meanwhile, because the queue was full.
        server_cpu: processor seconds of all processes of the server meanwhile.
        client_cpu: processor seconds of this process meanwhile: it shares the machine.
    """

    seconds: float
    latencies: tuple[float, ...]
    refused: int
    server_cpu: float
    client_cpu: float

    def figures(self) -> dict[str, float]:
        """Requests/s, latency in ms, processor time in ms a request, refused requests, by name."""
        answered = len(self.latencies)
        return {
            "throughput": answered / self.seconds,
            "p50_ms": 1000 * percentile(self.latencies, 0.5),
            "p95_ms": 1000 * percentile(self.latencies, 0.95),
            "p99_ms": 1000 * percentile(self.latencies, 0.99),
            "cpu_ms": 1000 * self.server_cpu / answered,
            "client_cpu_ms": 1000 * self.client_cpu / answered,
            "refused": float(self.refused),
        }


@contextmanager
def serving(model_store: Path, java_home: Path, workers: int) -> Iterator[Server]:
    """A server on free ports while the block runs, stopped after it.

    Args:
        model_store: the folder of the archive.
        java_home: the Java that runs TorchServe.
        workers: number of worker processes.

    Raises:
        CommandError: it doesn't start; its log is left.
    """
    server = start_server(model_store, java_home, free_ports(), workers=workers)
    try:
        wait_until_ready(server)
        yield server
    finally:
        stop_server(server)
    shutil.rmtree(run_folder(server.port), ignore_errors=True)


def family_seconds(process: psutil.Process) -> float:
    """Processor seconds, user and system, of a process, its descendants, and those of them that have ended."""
    return family_time([process, *process.children(recursive=True)])


def measure_load(port: int, pid: int, content: bytes, concurrency: int, seconds: float, lead: float = LEAD_S) -> Load:
    """Send a picture from ``concurrency`` connections, and measure a stretch from the midst of it.

    The stretch begins when every connection has had an answer: from then on the queue is as long as it stays.

    Args:
        port: of a READY server on this machine.
        pid: of the server's first process.
        content: a picture file, the body of each request.
        concurrency: connections at a time.
        seconds: that the stretch lasts.
        lead: seconds before it, at least.

    Raises:
        CommandError: no answer, one other than 200 and 503, or no 200 in the whole stretch; the first failure is told.
    """
    clients = _Clients(port, content)
    threads = [threading.Thread(target=clients.send, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    try:
        clients.stop.wait(lead)
        for _ in threads:
            clients.first.acquire()
        process = psutil.Process(pid)
        begin, server_cpu, client_cpu = time.perf_counter(), family_seconds(process), time.process_time()
        clients.stop.wait(seconds)
        end = time.perf_counter()
        server_cpu, client_cpu = family_seconds(process) - server_cpu, time.process_time() - client_cpu
    except psutil.NoSuchProcess:
        clients.failures.append(CommandError("the server ended while it was measured"))
    finally:
        clients.stop.set()
        for thread in threads:
            thread.join()
    if clients.failures:
        raise clients.failures[0]
    latencies = tuple(took for at, took in clients.answered if begin <= at < end)
    refused = sum(begin <= at < end for at in clients.refused)
    if not latencies:
        raise CommandError(f"the server answered no request with 200 in {seconds:g} s, and {refused} with 503")
    return Load(end - begin, latencies, refused, server_cpu, client_cpu)


class _Clients:
    """What the connections share: each sends in a thread of its own until ``stop`` is set."""

    def __init__(self, port: int, content: bytes) -> None:
        self.port, self.content = port, content
        self.stop = threading.Event()
        self.first = threading.Semaphore(0)  # counts the connections that have had an answer, or have failed
        self.answered: list[tuple[float, float]] = []  # when, and after how many seconds
        self.refused: list[float] = []  # when
        self.failures: list[CommandError] = []

    def send(self) -> None:
        """Send one request after the other over a connection."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=REQUEST_TIMEOUT_S)
        first = True
        try:
            while not self.stop.is_set():
                self._request(connection)
                if first:
                    self.first.release()
                    first = False
        except (OSError, http.client.HTTPException) as error:
            self._fail(f"the server didn't answer: {type(error).__name__}: {error}")
        finally:
            connection.close()
            if first:
                self.first.release()

    def _request(self, connection: http.client.HTTPConnection) -> None:
        begin = time.perf_counter()
        connection.request("PUT", f"/predictions/{MODEL_NAME}", self.content)
        response = connection.getresponse()
        body = response.read()
        now = time.perf_counter()
        if response.status == 200:
            self.answered.append((now, now - begin))
        elif response.status == 503:
            self.refused.append(now)
            self.stop.wait(REFUSAL_PAUSE_S)
        else:
            self._fail(f"the server answered with {response.status}, expected 200: {body[:300]!r}")

    def _fail(self, message: str) -> None:
        self.failures.append(CommandError(message))
        self.stop.set()
