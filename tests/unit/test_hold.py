"""Holds: a worker waits for the folder that ``scale.py`` made, and for no other."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
import requests

from handler import hold
from handler.hold import HEADER, requested_hold, wait_for_release
from scripts.lib.management import Management, ModelStatus, Worker
from scripts.lib.server import Server, held_workers

NAME = "hold-" + "0" * 32


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a server."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_an_existing_folder_of_this_user_holds(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested_hold({HEADER: NAME}) is None
    (temporary / NAME).mkdir()
    assert requested_hold({HEADER.upper(): NAME}) == temporary / NAME
    assert requested_hold({}) is None
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert requested_hold({HEADER: NAME}) is None


@pytest.mark.parametrize("name", ["", "..", f"../{NAME}", "hold-", f"{NAME}/..", "hold-" + "g" * 32])
def test_other_names_hold_nothing(temporary: Path, name: str) -> None:
    (temporary / NAME).mkdir()
    assert requested_hold({HEADER: name}) is None


def test_a_worker_signs_in_and_goes_on_when_the_folder_is_gone(temporary: Path) -> None:
    folder = temporary / NAME
    folder.mkdir()
    waiting = threading.Thread(target=wait_for_release, args=(folder,))
    waiting.start()
    deadline = time.monotonic() + 10
    while not (folder / str(os.getpid())).exists():
        assert time.monotonic() < deadline
    assert waiting.is_alive()
    (folder / str(os.getpid())).unlink()
    folder.rmdir()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    wait_for_release(folder)  # released before it came: at once


def test_a_worker_is_not_held_for_ever(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "MAX_HOLD_S", 0.05)
    (temporary / NAME).mkdir()
    start = time.monotonic()
    wait_for_release(temporary / NAME)
    assert time.monotonic() - start >= 0.05


def test_a_hold_that_is_never_answered_delays_nobody(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe may forget the request of a worker that it removes."""
    over, answered = threading.Event(), []

    def post(_address: str, headers: dict[str, str], timeout: float) -> None:
        (temporary / headers[HEADER] / "17").touch()  # the worker signs in
        answered.append(over.wait(60))

    status = ModelStatus("1.0", "densenet.mar", [Worker("9000", "READY", 17, 0)], 1, 1)
    monkeypatch.setattr(Management, "status", lambda self, version: status)
    monkeypatch.setattr(requests, "post", post)
    with held_workers(Server(59_990, 1, 0.0, "127.0.0.1", "127.0.0.1", False, 1, str(temporary))):
        pass
    assert answered == []
    over.set()
