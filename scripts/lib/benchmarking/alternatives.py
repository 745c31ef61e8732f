"""Other ways to serve the same model, each a program in ``apps``, started as its documentation shows."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.lib.benchmarking.contenders import HttpContender, Picture, Request, count, family, free_ports
from scripts.lib.benchmarking.subject import Subject
from scripts.lib.console import CommandError
from scripts.lib.machine import usable_cores
from scripts.lib.packages import optional_packages
from scripts.lib.paths import ROOT
from scripts.lib.server import LOOPBACK, end_family, last_line

LOCK = Path(__file__).with_name("apps") / "requirements.lock"
_APPS = "scripts.lib.benchmarking.apps"
_BOUNDARY = "densenet-benchmark-part"
_STOP_TIMEOUT = 5.0
"""Seconds to end by itself; LitServe doesn't when it is asked to, and is killed then."""


@dataclass(frozen=True)
class _App:
    """A program: how the report calls it, and its arguments to Python by port and number of workers."""

    title: str
    command: Callable[[int, int], Sequence[str]]


APPS: Mapping[str, _App] = {
    "flask": _App("Flask, its own server", lambda port, workers: ("-m", f"{_APPS}.flask_app")),
    "fastapi": _App(
        "FastAPI on uvicorn",
        lambda port, workers: (
            *("-m", "uvicorn", f"{_APPS}.fastapi_app:app", "--host", LOOPBACK, "--port", str(port)),
            *("--workers", str(workers), "--log-level", "warning"),
        ),
    ),
    "litserve": _App("LitServe", lambda port, workers: ("-m", f"{_APPS}.litserve_app")),
    "bentoml": _App(
        "BentoML",
        lambda port, workers: (
            *("-m", "bentoml", "serve", f"{_APPS}.bentoml_app:ImageService"),
            *("--host", LOOPBACK, "--port", str(port), "--working-dir", str(ROOT)),
        ),
    ),
}


class Alternative(HttpContender):
    """One of the programs, in eager PyTorch float32.

    Each of its workers writes a file with its process id as name when it has loaded the model: so
    one knows, without a question that only one of these servers would answer, how many are READY.

    Args:
        kind: a key of ``APPS``.
        workers: number of worker processes, None for one a core; each gets its share of the cores
            as threads. Flask is one process with torch's own number of threads.
    """

    def __init__(self, name: str, kind: str, workers: int | None) -> None:
        self.name, self.app = name, APPS[kind]
        cores = usable_cores()
        if kind == "flask":
            self.workers, self.threads = 1, 0
            settings = "1 process, a thread a request, torch's own number of threads"
        else:
            self.workers = workers or cores
            self.threads = max(1, cores // self.workers)
            settings = f"{count(self.workers, 'worker')} of {count(self.threads, 'thread')}"
        self.what = f"{self.app.title}, {settings}, torch float32"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, subject: Subject, java_home: Path, folder: Path) -> None:
        self._model = subject.model.path.resolve()
        self._packages = optional_packages(LOCK, "the alternatives")

    def start(self) -> None:
        self._port = free_ports()
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))  # short: sockets lie in it
        self._loaded = self._folder / "loaded"
        self._loaded.mkdir()
        with (self._folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.app.command(self._port, self.workers)],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self._packages), str(ROOT)]),
            "TMPDIR": str(self._folder),
            "TEMP": str(self._folder),
            "TMP": str(self._folder),
            "BENTOML_HOME": str(self._folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENCHMARK_MODEL": str(self._model),
            "BENCHMARK_LOADED": str(self._loaded),
            "BENCHMARK_PORT": str(self._port),
            "BENCHMARK_WORKERS": str(self.workers),
            "BENCHMARK_THREADS": str(self.threads),
        }

    def ready(self) -> tuple[int, int]:
        if self._process is None or self._process.poll() is not None:
            raise CommandError(f"{self.name}: it died at its start: {last_line(self._folder / 'server.log')}")
        loaded = len(self.worker_pids())
        return (loaded if loaded and self._listens() else 0, self.workers)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=1):
            return True
        return False

    def worker_pids(self) -> list[int]:
        return sorted(int(file.name) for file in self._loaded.iterdir())

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return family(psutil.Process(self._process.pid) if self._process else None)
        return []

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, self._port

    def request(self, picture: Picture) -> Request:
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="picture.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        body = head.encode() + picture.content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return Request("POST", "/predict", {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body)

    def stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            end_family(psutil.Process(self._process.pid), _STOP_TIMEOUT)
        self._process.wait()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)
