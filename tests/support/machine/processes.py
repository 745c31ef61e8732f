"""The processes of a server under test, and what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.lib.benchmarking.measure import memory
from scripts.lib.server import find_server
from tests.support.servers.running import Running


def server_processes(server: Running) -> dict[str, psutil.Process]:
    """Java, its workers, and their decoding processes, by name: ``java``, ``worker PID``, ``decoder of worker PID``."""
    found = find_server(server.port)
    java = found.process() if found else None
    assert java is not None, "the server is gone"
    processes = {"java": java}
    for worker in sorted(_children(java, "model_service_worker"), key=lambda p: p.pid):
        processes[f"worker {worker.pid}"] = worker
        for decoder in _children(worker, "handler.isolation"):
            processes[f"decoder of worker {worker.pid}"] = decoder
    return processes


def _children(process: psutil.Process, word: str) -> list[psutil.Process]:
    """The children whose command line holds ``word``."""
    found = []
    for child in process.children():
        try:
            if word in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def core_of_its_own() -> Iterator[Callable[[], None]]:
    """What this process starts gets all of its cores but the last; the function moves it itself to that one.

    With a single core, or where a system has no affinity, nothing changes.
    """
    if not hasattr(os, "sched_getaffinity") or len(cores := os.sched_getaffinity(0)) == 1:
        yield lambda: None
        return
    own = {max(cores)}
    os.sched_setaffinity(0, cores - own)
    try:
        yield lambda: os.sched_setaffinity(0, own)
    finally:
        os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Held:
    """What a process holds. Memory in bytes: ``rss`` with all that it shares, ``pss`` with its part of that.

    ``files``: descriptors, but for the connections of clients.
    """

    rss: float
    pss: float
    files: int
    threads: int


def held(server: Running) -> dict[str, Held]:
    """What each process of a server holds now, on Linux; one that has just ended is left out."""
    result = {}
    for name, process in server_processes(server).items():
        try:
            # first the connections: one that comes between counts too much, and never too little
            clients = {
                c.fd for c in process.net_connections("tcp") if c.laddr.port == server.port and c.status != "LISTEN"
            }
            files = sum(int(fd.name) not in clients for fd in Path(f"/proc/{process.pid}/fd").iterdir())
            of = memory(process.pid)
            result[name] = Held(of["rss"], of["pss"], files, process.num_threads())
        except (psutil.NoSuchProcess, FileNotFoundError):
            continue
    return result
