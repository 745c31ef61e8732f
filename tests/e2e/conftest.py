"""A real server for the session: the bundled model behind the real TorchServe, on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from scripts.lib.paths import BUNDLED, ROOT
from tests.ports import free_ports

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


@contextmanager
def serving(model_store: Path, *flags: str, weights: Path = BUNDLED, **environment: str) -> Iterator[Running]:
    """A server started by ``serve.py --detach`` and stopped by ``stop.py``."""
    port = free_ports()
    started = command(
        *("serve.py", "--detach", "--weights", str(weights), "--port", str(port)),
        *("--model-store", str(model_store), *flags),
        **environment,
    )
    try:
        assert started.returncode == 0, started.stderr + started.stdout
        yield Running(port, model_store, started.stdout)
    finally:
        stopped = command("stop.py", "--port", str(port))
        assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store of the tests' own: the user's archive stays as it is."""
    return tmp_path_factory.mktemp("model_store")


@pytest.fixture(scope="session")
def server(model_store: Path) -> Iterator[Running]:
    """The bundled model behind two workers."""
    with serving(model_store, "--workers", "2") as running:
        yield running
