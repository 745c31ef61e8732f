"""The foreground ends a server without workers; the clock has no say in who a process is."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from handler.densenet_handler import _is_no_noise
from scripts.lib import serving
from scripts.lib.console import CommandError
from scripts.lib.management import Management, ModelStatus, NotRunning, Worker
from scripts.lib.server import LOG, OUTPUT, Server, started


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A server whose process is one that sleeps."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        me = psutil.Process(process.pid)
        yield Server(59_990, process.pid, started(me), "127.0.0.1", "127.0.0.1", False, 1, str(tmp_path))
        process.kill()


def status(*states: str) -> ModelStatus:
    """What the management API says of workers in these states."""
    return ModelStatus("1.0", "densenet.mar", [Worker(str(i), state, 1, 0) for i, state in enumerate(states)], 1, 1)


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        pytest.param(status("READY", "LOADING"), True, id="one-ready"),
        pytest.param(status("LOADING"), False, id="none-ready"),
        pytest.param(status(), False, id="none-left"),
        pytest.param(NotRunning("no server answers"), False, id="no-answer"),
        pytest.param(CommandError("answered with 400: token expired"), True, id="token-expired"),
    ],
)
def test_ready_is_what_the_management_api_says(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: ModelStatus | CommandError, ready: bool
) -> None:
    def say(_: Management) -> ModelStatus:
        if isinstance(answer, CommandError):
            raise answer
        return answer

    monkeypatch.setattr(Management, "status", say)
    assert serving._has_ready_worker(server) is ready


def test_server_without_a_ready_worker_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """``serve.py`` then ends it, as on any other error."""
    monkeypatch.setattr("scripts.lib.server.RUN", Path(server.temporary))
    server.folder.mkdir()
    for name in (LOG, OUTPUT):
        (server.folder / name).touch()
    monkeypatch.setattr(Management, "status", lambda _: status("LOADING"))
    monkeypatch.setattr(serving, "NOT_READY_SECONDS", 1.0)
    monkeypatch.setattr(serving, "WATCH_SECONDS", 0.1)
    with pytest.raises(CommandError, match=r"^no worker was READY for 1 s, so that the server was ended"):
        serving.wait_for_end(server)


def test_setting_the_clock_changes_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's time of start follows the clock: after a jump stop.py took its server for another process."""
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 3600)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert server.process() is not None
    assert started(psutil.Process(os.getpid())) == started(psutil.Process(os.getpid()))


@pytest.mark.parametrize(
    ("message", "kept"),
    [("Failed json decoding of input data. Forwarding encoded payload", False), ("Prediction error", True)],
)
def test_a_clients_mistake_is_not_logged_with_a_traceback(message: str, kept: bool) -> None:
    record = logging.LogRecord("root", logging.WARNING, "x.py", 1, message, None, None)
    assert _is_no_noise(record) is kept


def test_a_log_is_followed_across_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_text("before\n", encoding="utf-8")
    with serving.Tail(path) as tail, path.open("a", encoding="utf-8") as log:
        assert tail.read() == ""
        log.write("one\n")
        log.flush()
        assert tail.read() == "one\n"
        log.write("two\n")
        log.flush()
        path.rename(tmp_path / "server.1.log")
        assert tail.read() == "two\n"
        log.write("three\n")
        log.flush()
        path.write_text("four\n", encoding="utf-8")
        assert tail.read() == "three\nfour\n"
        path.write_text("5\n", encoding="utf-8")  # emptied in place, and begun again
        assert tail.read() == "5\n"
