"""Slow work that is put off: what a worker answers, what comes back, and what becomes of work for nobody."""

from __future__ import annotations

import os
import re
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from handler import densenet_handler, later
from handler.densenet_handler import DenseNetHandler
from handler.errors import SLOW_HEADER, ImageTooComplex, ServerBusy
from handler.later import HEADER, MAX_WAITING, MAY, Lane, Result, taken
from scripts.lib.model_folder import ModelFolder
from tests.support.hostile.http import jpeg_of_scans
from tests.support.machine.waiting import wait_until
from tests.support.pictures.made import jpeg, noise, save
from tests.support.servers.worker import Request, config_of, serve, start
from tests.support.servers.worker_protocol import Answer

SLOW = jpeg_of_scans(3000, 1000)
"""Takes about a second."""


class Work:
    """A task that ends when a file is there."""

    stage = "test"

    def __init__(self, seconds: float = 60, error: Exception | None = None) -> None:
        self.deadline = time.monotonic() + seconds
        self.error = error
        self.over = self.low = False
        self.started = 0
        self.running = False

    def start(self) -> None:
        """Begin."""
        self.started += not self.running
        self.running = True

    def step_back(self) -> None:
        """Note it."""
        self.low = True

    def stop(self) -> None:
        """Leave off."""
        self.running = False

    def wait(self, seconds: float) -> bool:
        """Whether the test ended it."""
        time.sleep(min(seconds, 0.01))
        return self.over

    def result(self) -> Result:
        """One number."""
        if self.error is not None:
            raise self.error
        return {"number": np.array([7])}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def lane() -> Iterator[tuple[Lane, list[str]]]:
    """A lane, and the stages that it reported."""
    stages: list[str] = []
    yield Lane(lambda stage, seconds: stages.append(stage)), stages


def defer(lane: Lane, work: Work) -> Path:
    """The ticket of a task that was begun and put off."""
    work.start()
    response = lane.defer(work)
    assert (response.status, response.outcome) == (503, later.OUTCOME)
    match = re.fullmatch(r"(.*/later-[0-9a-f]{32}) \d+", response.headers[HEADER])
    assert match is not None
    return Path(match[1])


def test_a_result_is_fetched_once_by_its_ticket(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    work = Work()
    ticket = defer(lane[0], work)
    assert ticket.parent == folder and ticket.stat().st_size == 0 and ticket.stat().st_mode & 0o777 == 0o600
    work.over = True
    wait_until(lambda: ticket.stat().st_size)
    result = taken({HEADER.lower(): ticket.name})
    assert result is not None and result["number"].tolist() == [7]
    assert work.low and work.started == 1
    assert not list(folder.iterdir())
    with pytest.raises(ServerBusy, match=r"^the work on this request was lost; try again$") as lost:
        taken({HEADER: ticket.name})
    assert lost.value.headers[SLOW_HEADER] == "1"
    lane[0].finish(10)
    assert lane[1] == ["test"]


@pytest.mark.parametrize("value", [None, MAY, "", "later-1", "../later-" + "0" * 32, "later-" + "0" * 31 + "G"])
def test_what_is_no_ticket_is_none(folder: Path, value: str | None) -> None:
    assert taken({} if value is None else {HEADER: value}) is None


def test_a_result_runs_no_code(folder: Path) -> None:
    ticket = folder / f"later-{'0' * 32}"
    with ticket.open("wb") as file:
        np.savez(file, number=np.array([object()]))
    with pytest.raises(ServerBusy, match="was lost"):
        taken({HEADER: ticket.name})


def test_an_error_comes_back_as_itself(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    for error in (ImageTooComplex("too much"), ServerBusy("not now", slow=True)):
        work = Work(error=error)
        work.over = True
        ticket = defer(lane[0], work)
        wait_until(lambda ticket=ticket: ticket.stat().st_size)  # type: ignore[misc]
        with pytest.raises(type(error), match=str(error)) as caught:
            taken({HEADER: ticket.name})
        assert caught.value.headers == error.headers


def test_tasks_take_turns_and_too_many_are_refused(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    works = [Work() for _ in range(1 + MAX_WAITING)]
    files = [defer(lane[0], work) for work in works]
    assert [work.running for work in works] == [True] + [False] * MAX_WAITING
    refused = Work()
    refused.start()
    with pytest.raises(ServerBusy, match="works on other slow requests") as caught:
        lane[0].defer(refused)
    assert caught.value.headers["X-Densenet-Slow"] == "1" and not refused.running
    for work in works:
        work.over = True
    wait_until(lambda: all(ticket.stat().st_size for ticket in files))
    assert [work.started for work in works] == [1] + [2] * MAX_WAITING


def test_a_worker_that_goes_waits_for_its_slow_work_and_not_without_end(
    folder: Path, lane: tuple[Lane, list[str]]
) -> None:
    work = Work()
    defer(lane[0], work)
    lane[0].finish(0.2)
    assert work.running
    threading.Timer(0.3, lambda: setattr(work, "over", True)).start()
    lane[0].finish(60)
    assert work.over and lane[1] == ["test"]


def test_a_result_that_is_due_may_still_come(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    assert lane[0].defer(Work(seconds=-10)).headers[HEADER].endswith(f" {later.GRACE_S}")


def test_work_for_nobody_and_work_that_is_late_is_left_off(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    gone, late = Work(), Work(seconds=0.2)
    ticket = defer(lane[0], gone)
    ticket.unlink()
    wait_until(lambda: not gone.running)
    ticket = defer(lane[0], late)
    wait_until(lambda: ticket.stat().st_size)
    assert not late.running
    with pytest.raises(ServerBusy, match="too much to do for so slow a request"):
        taken({HEADER: ticket.name})
    assert not list(folder.iterdir())


def test_a_fault_is_told_as_a_lost_result(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    work = Work(error=KeyError("a fault"))
    work.over = True
    ticket = defer(lane[0], work)
    wait_until(lambda: not ticket.exists())
    work = Work()
    work.over = True
    ticket = defer(lane[0], work)
    wait_until(lambda: ticket.exists() and ticket.stat().st_size)


def test_forgotten_tickets_are_removed(folder: Path, lane: tuple[Lane, list[str]]) -> None:
    old = folder / f"later-{'0' * 32}"
    old.touch()
    os.utime(old, (0, 0))
    defer(lane[0], Work())
    assert not old.exists()


def again(handler: DenseNetHandler, answer: Answer, request: Request) -> Answer:
    """The answer when the frontend comes back with the ticket."""
    ticket = Path(answer.headers[HEADER].rpartition(" ")[0])
    wait_until(lambda: ticket.stat().st_size)
    (result,) = serve(handler, [Request(request.row, {**request.headers, HEADER: ticket.name})])
    return result


def test_a_slow_picture_of_a_batch_is_put_off_and_the_others_answered(
    folder: Path, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_model)
    config["limits"]["max_image_pixels"] = 10**8
    handler = start(tiny_model.path, config)
    monkeypatch.setattr(densenet_handler, "PATIENCE_S", 0.05)
    slow, good = Request({"body": SLOW}, {HEADER: MAY}), Request({"body": jpeg()}, {HEADER: MAY})
    first, second = serve(handler, [slow, good])
    assert (first.status, second.status) == (503, 200)
    assert again(handler, first, slow).status == 200


def test_a_process_that_cant_be_started_is_one_requests_error(tiny_handler: DenseNetHandler) -> None:
    webp = Request({"body": save(noise(64, 64), "WEBP")}, {})
    tiny_handler.reader.close()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        first, second = serve(tiny_handler, [webp, Request({"body": jpeg()}, {})])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (first.status, first.json["type"], second.status) == (503, "ServerBusy", 200)
    assert first.headers["Retry-After"] == "2"
    assert [answer.status for answer in serve(tiny_handler, [webp])] == [200]


def test_without_the_frontends_word_a_worker_waits(tiny_handler: DenseNetHandler) -> None:
    (answer,) = serve(tiny_handler, [Request({"body": jpeg_of_scans(1000, 3000)}, {})])
    assert answer.status == 200


@pytest.mark.slow
def test_integrated_gradients_are_put_off(folder: Path, tiny_handler: DenseNetHandler) -> None:
    row = {"body": jpeg(), "method": bytearray(b"integrated-gradients")}
    request = Request(row, {HEADER: MAY, "explain": "True"})
    (first,) = serve(tiny_handler, [request])
    assert first.status == 503 and HEADER in first.headers
    answer = again(tiny_handler, first, request)
    assert answer.status == 200
    assert np.array(answer.json["heat_map"]).shape == (64, 64)
    (alone,) = serve(tiny_handler, [Request(row, {"explain": "True"})])
    assert alone.json == answer.json
