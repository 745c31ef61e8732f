"""Slow requests beside good ones: who sends a slow one waits, nobody else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.card import ARCHITECTURES, ModelCard
from handler.network import build_network
from scripts.lib.management import Management
from scripts.lib.model_folder import write_model_folder
from scripts.lib.server import find_server
from tests.support.hostile.http import jpeg_of_scans
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA
from tests.support.pictures.made import base64_of, noise, save
from tests.support.servers.running import Running, command, serving

pytestmark = [pytest.mark.slow, pytest.mark.alone]

TIMEOUT_S = 120
SLOW = jpeg_of_scans(8000, 800)
"""Takes about 4 seconds of processor time to decode."""
SLOWISH = jpeg_of_scans(5000, 600)
"""About 1 second."""
GOOD = CHELSEA.read_bytes()
EXPLAIN = {"file": GOOD}
GRADIENTS = {"method": "integrated-gradients"}
ATTEMPTS = 3
"""On a machine with other things to do, a slow request may be told to try again."""
MOST = 3
"""How many times as long as alone (p99) a prediction may take beside slow requests; one in fifty longer."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a single worker."""
    with serving(tmp_path_factory.mktemp("store"), "--workers", "1") as running:
        yield running


def put(server: Running, data: bytes = GOOD, headers: dict[str, str] | None = None) -> requests.Response:
    """A request for a prediction."""
    return requests.put(server.predictions, data=data, headers=headers, timeout=TIMEOUT_S)


def gradients(server: Running) -> requests.Response:
    """A request for an explanation that takes seconds."""
    return requests.post(f"{server.url}/explanations/densenet", files=EXPLAIN, data=GRADIENTS, timeout=TIMEOUT_S)


def pids(server: Running) -> list[int]:
    """The workers' process ids."""
    return [worker.pid for worker in Management(server.management).status().workers]


def tickets(server: Running) -> list[str]:
    """The files of requests that are put off."""
    found = find_server(server.port)
    assert found is not None
    return [path.name for path in Path(found.temporary).glob("later-*")]


def good_beside(server: Running, slow: Future[Any]) -> list[float]:
    """Seconds of the predictions, one after the other, while a slow request is under way."""
    seconds = []
    while not slow.done():
        answer = put(server)
        assert answer.status_code == 200, answer.text
        seconds.append(answer.elapsed.total_seconds())
        time.sleep(0.05)
    return seconds


def p99(seconds: list[float]) -> float:
    """99 % are at most as long."""
    return statistics.quantiles(seconds, n=100)[98]


def test_the_pictures_of_a_request_have_one_budget(alone: Running) -> None:
    """Twenty pictures, each within its limits: they held a worker for a minute, until it was killed."""
    before = pids(alone)
    data = {"instances": [{"data": base64_of(jpeg_of_scans(7000, 1000))}] * 20}
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(requests.post, f"{alone.url}/v1/models/densenet:predict", json=data, timeout=TIMEOUT_S)
        assert len(good_beside(alone, slow)) > 10
    answer = slow.result()
    if answer.status_code == 413:
        assert answer.json()["type"] == "ImageTooComplex"
        assert "received 20 pictures that take more than 10 s of processor time" in answer.json()["message"]
    else:  # a machine that has other things to do
        assert (answer.status_code, answer.headers["x-densenet-slow"]) == (503, "1")
    assert answer.elapsed.total_seconds() < 25
    assert pids(alone) == before


def test_a_slow_picture_is_served_and_good_ones_beside_it(alone: Running) -> None:
    quiet = [put(alone).elapsed.total_seconds() for _ in range(100)]
    with ThreadPoolExecutor() as pool:
        for _ in range(ATTEMPTS):
            slow = pool.submit(put, alone, SLOW)
            beside = good_beside(alone, slow)
            if slow.result().status_code == 200:
                break
    assert slow.result().status_code == 200, slow.result().text
    print(f"p99 {p99(quiet):.3f} s alone, {p99(beside):.3f} s beside a slow picture, the longest {max(beside):.3f} s")
    assert max(beside) < slow.result().elapsed.total_seconds() / 2, "none waits for the slow one"
    assert statistics.median(beside) < MOST * p99(quiet)
    assert tickets(alone) == []


def test_many_slow_pictures_are_served_in_turn_or_told_to_try_again(alone: Running) -> None:
    before = pids(alone)
    with ThreadPoolExecutor(12) as pool:
        slow = [pool.submit(put, alone, SLOW) for _ in range(11)]
        good = [answer for each in slow for answer in good_beside(alone, each)]
    answers = [each.result() for each in slow]
    assert 503 in {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        assert answer.elapsed.total_seconds() < 28
        if answer.status_code == 503:
            assert (answer.headers["x-densenet-slow"], answer.json()["type"]) == ("1", "ServerBusy")
            assert "retry-after" in answer.headers
    assert len(good) > 20 and max(good) < 25
    assert pids(alone) == before
    wait_until(lambda: not tickets(alone))


def test_who_has_gone_is_worked_for_no_longer(alone: Running) -> None:
    with pytest.raises(requests.Timeout):
        requests.put(alone.predictions, data=SLOW, timeout=1.5)
    wait_until(lambda: not tickets(alone), 5)
    assert put(alone, SLOWISH).status_code == 200, "the place is free again"


def test_a_client_can_neither_put_off_nor_fetch(alone: Running) -> None:
    for value in ("may", f"later-{'0' * 32}", "later-../x"):
        assert put(alone, headers={"x-densenet-LATER": value}).status_code == 200


def test_another_format_is_answered_at_once(alone: Running) -> None:
    """It is decoded in a process of its own, but isn't slow; also while that of a slow picture is under way."""
    data = save(noise(1000, 800), "WEBP")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(put, alone, SLOW)
        wait_until(lambda: tickets(alone), 10)
        answers = [put(alone, data) for _ in range(10)]
        assert not slow.done(), "that was no test"
    assert [answer.status_code for answer in answers] == [200] * 10
    assert statistics.median(answer.elapsed.total_seconds() for answer in answers) < 1


@pytest.fixture(scope="module")
def densenet121(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A single worker with a network of DenseNet-121's size; its weights are random."""
    labels = [f"class {index}" for index in range(1000)]
    card = ModelCard(name="random", architecture=ARCHITECTURES["densenet121"], num_classes=1000)
    state = build_network(card.architecture, card.num_classes).state_dict()
    folder = write_model_folder(tmp_path_factory.mktemp("densenet121"), state, card, labels).path
    with serving(tmp_path_factory.mktemp("store"), "--workers", "1", weights=folder) as running:
        yield running


def test_predictions_beside_integrated_gradients(densenet121: Running) -> None:
    """Of two explanations at once the second one is told to try again; predictions don't wait for either."""
    quiet = [put(densenet121).elapsed.total_seconds() for _ in range(100)]
    with ThreadPoolExecutor() as pool:
        for _ in range(ATTEMPTS):
            first = pool.submit(gradients, densenet121)
            wait_until(lambda: tickets(densenet121), 10)
            second = gradients(densenet121)
            beside = good_beside(densenet121, first)
            explanation = first.result()
            if explanation.status_code == 200:
                break
    assert explanation.status_code == 200, explanation.text
    assert len(explanation.json()["heat_map"]) == 224
    assert (second.status_code, second.json()["type"]) == (503, "ServerBusy")
    assert "retry-after" in second.headers and second.elapsed.total_seconds() < 1
    print(
        f"p99 {p99(quiet):.3f} s alone, {p99(beside):.3f} s beside integrated gradients, which took "
        f"{explanation.elapsed.total_seconds():.1f} s"
    )
    assert len(beside) > 20
    slower = [seconds for seconds in beside if seconds > MOST * p99(quiet)]
    assert len(slower) <= len(beside) / 50, slower
    assert gradients(densenet121).status_code == 200, "the place is free again"


def test_a_worker_is_removed_when_its_slow_work_is_done(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server, ThreadPoolExecutor() as pool:
        slow = [pool.submit(put, server, SLOWISH) for _ in range(2)]
        time.sleep(1)
        scaled = command("scale.py", "1", "--port", str(server.port))
        assert scaled.returncode == 0, scaled.stderr
        assert [each.result().status_code for each in slow] == [200, 200]
