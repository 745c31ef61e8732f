"""The project's commands as a person runs them, and the real server that they start."""

from __future__ import annotations

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

import pytest

from scripts.lib import paths
from scripts.lib.archive import archive_path
from scripts.lib.console import CommandError
from scripts.lib.management import Management
from scripts.lib.paths import BUNDLED, ROOT
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import wait_until

COMMAND_TIMEOUT_S = 300


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project, ``command("scale.py", "2")``, as a person would."""
    return command_by(lambda *run: list(run), *arguments, environment=environment)


def command_by(
    wrapper: Callable[..., list[str]],
    *arguments: str,
    timeout: float = COMMAND_TIMEOUT_S,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a command of the project by what ``wrapper`` makes of its command line."""
    script, *rest = arguments
    return subprocess.run(
        wrapper(sys.executable, str(ROOT / "scripts" / script), *rest),
        cwd=ROOT,
        env={**os.environ, "DENSENET_NO_VENV": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def called(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``command`` in this process, a second sooner: for one that ends before it starts or changes anything.

    Args:
        script: in ``scripts``, or relative to it.
        arguments: of the command.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        patch.dict(os.environ, DENSENET_NO_VENV="1"),
        patch.multiple(sys, argv=[script, *arguments], path=[*sys.path]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    printed, complained = (stream.buffer.getvalue().decode() for stream in (out, err))
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess([script, *arguments], ended.value.code, printed, complained)


@dataclass(frozen=True)
class Running:
    """A server under test."""

    port: int
    model_store: Path
    output: str

    @property
    def url(self) -> str:
        """Inference address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def predictions(self) -> str:
        """The route of the contract."""
        return f"{self.url}/predictions/densenet"

    @property
    def management(self) -> str:
        """Management address."""
        return f"http://127.0.0.1:{self.port + 1}"


@cache
def bundled_archive() -> Path:
    """The archive of the bundled model: a server that is given it starts without importing PyTorch."""
    built = command("build_archive.py", "--weights", str(BUNDLED))
    assert built.returncode == 0, built.stderr
    return archive_path(paths.MODEL_STORE)


@contextmanager
def serving(model_store: Path, *flags: str, weights: Path | None = None, **environment: str) -> Iterator[Running]:
    """A server started by ``serve.py --detach`` and stopped by ``stop.py``; by default of the bundled model."""
    port = free_ports()
    started = command(
        *("serve.py", "--detach", "--weights", str(weights or archive_in(model_store)), "--port", str(port)),
        *("--model-store", str(model_store), *flags),
        **environment,
    )
    try:
        assert started.returncode == 0, started.stderr + started.stdout
        yield Running(port, model_store, started.stdout)
    finally:
        stopped = command("stop.py", "--port", str(port))
        assert stopped.returncode == 0, stopped.stderr


def archive_in(model_store: Path) -> Path:
    """The archive of the bundled model in a model store, put there if need be."""
    archive = archive_path(model_store)
    if not archive.exists():
        shutil.copy(bundled_archive(), archive)
    return archive


@contextmanager
def foreground(model_store: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``serve.py`` in the foreground, READY; the process and its port."""
    port = free_ports()
    weights = str(archive_in(model_store))
    arguments = ["--weights", weights, "--port", str(port), "--model-store", str(model_store), "--workers", "1"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), *arguments],
        env={**os.environ, "DENSENET_NO_VENV": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ctrl-C stops it"):
                break
        yield process, port


@contextmanager
def in_foreground(
    wrapper: Callable[..., list[str]],
    port: int,
    model_store: Path,
    workers: int = 1,
    weights: str | None = None,
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """``serve.py`` in the foreground by ``wrapper``; stopped, with whatever it started, at the end."""
    weights = weights or str(archive_in(model_store))
    serve = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--weights", weights, "--workers", str(workers)]
    settings = {**os.environ, "DENSENET_NO_VENV": "1", **environment}
    log = model_store / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            wrapper(*serve, "--port", str(port), "--model-store", str(model_store)),
            env=settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        assert command("stop.py", "--port", str(port), **environment).returncode == 0
        process.wait(timeout=COMMAND_TIMEOUT_S)


def wait_for_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server has a READY worker."""
    management = Management(f"http://127.0.0.1:{port + 1}")

    def ready() -> bool:
        assert process.poll() is None, "serve.py ended"
        with suppress(CommandError):
            return management.status().ready > 0
        return False

    wait_until(ready, COMMAND_TIMEOUT_S)


def wait_for_workers(server: Running, wanted: int, timeout: float = 60) -> None:
    """Wait until exactly ``wanted`` workers are READY."""
    management = Management(server.management)
    wait_until(lambda: management.status().ready == wanted, timeout, lambda: str(management.status()))
