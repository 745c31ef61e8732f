"""The client against a small real HTTP server that answers as TorchServe would."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.client import (
    Answer,
    AsyncDenseNetClient,
    ClientError,
    DenseNetClient,
    Prediction,
    Refused,
    Unavailable,
    Unreadable,
    asynchronous,
)
from scripts.client.asynchronous import LONGEST_PAUSE_S, MAX_FAULTS, pause_before_retry, retry_after, window_size
from scripts.lib.server import inference_token

ANSWER = {"label": "Samoyed", "index": 1, "probability": 0.9}
SAMOYED = Answer("Samoyed", 1, 0.9)


@dataclass
class Seen:
    """What a server was asked: a line a request, and how many were under way at once."""

    requests: list[str] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def answering(*answers: int | tuple[int, str] | str, delay: float = 0.0, **headers: str) -> Iterator[tuple[str, Seen]]:
    """A server that gives ``answers`` in turn, the last one for ever.

    A number is a status; with a text, the status and TorchServe's type of error; a text alone is the body of a 200.
    """
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with seen.lock:
                answer = answers[min(len(seen.requests), len(answers) - 1)]
                seen.requests.append(f"{self.path} {self.headers.get('Authorization')} {body.decode()}")
                seen.now += 1
                seen.most = max(seen.most, seen.now)
            time.sleep(delay)
            with seen.lock:
                seen.now -= 1
            status, kind = (
                (200, "") if isinstance(answer, str) else answer if isinstance(answer, tuple) else (answer, "X")
            )
            error = {"code": status, "type": kind, "message": f"because {status}"}
            text = answer if isinstance(answer, str) else json.dumps(ANSWER if status == 200 else error)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Retries at once."""
    if "real_pauses" not in request.keywords:
        monkeypatch.setattr(asynchronous, "pause_before_retry", lambda attempt: 0.0)


def refusal(url: str, picture: bytes = b"picture", patience: float = 0.3) -> ClientError:
    """The error that a prediction ends with."""
    with DenseNetClient(url, patience=patience) as client, pytest.raises(ClientError) as caught:
        client.predict(picture)
    return caught.value


def test_busy_is_asked_again() -> None:
    with answering(503, 429, 502, 504, 200) as (url, seen), DenseNetClient(url, "secret") as client:
        assert client.predict(b"picture", topk=3) == SAMOYED
    assert seen.requests == ["/densenet/predict?topk=3 Bearer secret picture"] * 5


def test_a_refusal_is_final() -> None:
    with answering((400, "InvalidImage")) as (url, seen):
        error = refusal(url)
    assert isinstance(error, Refused)
    assert (str(error), error.status, error.type) == ("400: because 400", 400, "InvalidImage")
    assert len(seen.requests) == 1


def test_busy_for_too_long_is_an_error() -> None:
    with answering(503) as (url, seen):
        error = refusal(url)
    assert isinstance(error, Unavailable)
    assert str(error) == "503: because 503"
    assert len(seen.requests) > 1


def test_a_fault_of_the_server_is_tried_three_times() -> None:
    with answering(500, 500, 200) as (url, _), DenseNetClient(url) as client:
        assert client.predict(b"picture") == SAMOYED
    with answering(500) as (url, seen):
        error = refusal(url, patience=60)
    assert isinstance(error, Refused)
    assert (error.status, len(seen.requests)) == (500, MAX_FAULTS)


def test_a_picture_with_which_two_workers_died_is_its_own_error() -> None:
    with answering((503, "WorkerDied"), 503, 200) as (url, _), DenseNetClient(url) as client:
        assert client.predict(b"picture") == SAMOYED
    died = (503, "WorkerDied")
    with answering(died, died, 200) as (url, seen), DenseNetClient(url, patience=60) as client:
        one, two = client.predict_many([b"one", b"two"], concurrency=1)
    assert isinstance(one.error, Refused)
    assert (one.error.status, one.error.type, two.answer) == (503, "WorkerDied", SAMOYED)
    assert len(seen.requests) == 3


@pytest.mark.parametrize(
    "answer", [401, 403, 404, 405, (400, "InvalidKeyException")], ids=["401", "403", "404", "405", "wrong-token"]
)
def test_what_every_picture_would_get_ends_the_batch(answer: int | tuple[int, str]) -> None:
    with answering(200, answer) as (url, seen), DenseNetClient(url) as client:
        results = client.predict_many([b"one", b"two", b"three"], concurrency=1)
        assert next(results).answer == SAMOYED
        with pytest.raises(Unavailable, match="because"):
            next(results)
    assert len(seen.requests) <= 3


def test_no_server_is_an_error_that_says_what_to_do() -> None:
    with answering(200) as (url, _):
        pass
    with DenseNetClient(url, patience=0) as client:
        for call in (client.ping, lambda: client.predict(b"picture")):
            with pytest.raises(Unavailable) as caught:
                call()
            assert str(caught.value) == (
                f"no server answers at {url} (ConnectError); start one with: python3 scripts/serve.py"
            )


@pytest.mark.parametrize("answer", ["<html>", "{}", "[]", '{"label": "x", "index": "y", "probability": 1}'])
def test_another_server_is_told_from_one_of_ours(answer: str) -> None:
    with answering(answer) as (url, _):
        error = refusal(url)
    assert isinstance(error, Unavailable)
    assert "which is no prediction; is it the inference address?" in str(error)


@pytest.mark.parametrize("url", ["127.0.0.1:5000", "localhost", "ftp://x", ""])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match=r"as the server's address; expected one like http://127\.0\.0\.1:5000"):
        DenseNetClient(url)
    with pytest.raises(ClientError, match="as the server's address"):
        DenseNetClient("http://a:b:c")


@pytest.mark.real_pauses
def test_pauses_grow_and_are_random() -> None:
    for attempt, longest in [(0, 0.5), (1, 1.0), (2, 2.0), (4, LONGEST_PAUSE_S), (10_000, LONGEST_PAUSE_S)]:
        pauses = [pause_before_retry(attempt) for _ in range(200)]
        assert longest / 2 <= min(pauses) < longest * 0.6
        assert longest * 0.9 < max(pauses) <= longest


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7") == 7.0
    assert retry_after("") == retry_after("soon") == retry_after("-1") == 0.0
    later = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 25 < retry_after(format_datetime(later, usegmt=True)) <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_retry_after_is_honoured() -> None:
    with answering(503, 200, Retry_After="1") as (url, _), DenseNetClient(url) as client:
        begin = time.monotonic()
        assert client.predict(b"picture") == SAMOYED
        assert time.monotonic() - begin >= 1
    with answering(503, Retry_After="3600") as (url, seen):
        begin = time.monotonic()
        assert str(refusal(url, patience=60)) == "503: because 503"
        assert time.monotonic() - begin < 30  # nobody waits for an hour with a minute's patience
    assert len(seen.requests) == 1


def test_files_are_answered_in_order_and_errors_stay_with_their_file(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.jpg" for n in range(20)]
    for file in files[:19]:
        file.write_text("picture", encoding="utf-8")
    counted: list[None] = []
    with answering(200) as (url, _), DenseNetClient(url) as client:
        results = list(client.predict_many(files, concurrency=4, progress=lambda: counted.append(None)))
    assert [r.picture for r in results] == files
    assert all(r.answer == SAMOYED and r.error is None for r in results[:19])
    assert isinstance(results[19].error, Unreadable)
    assert str(results[19].error) == "can't be read: No such file or directory"
    assert len(counted) == 20


def test_an_impossible_path_is_an_error_of_its_own() -> None:
    with DenseNetClient("http://127.0.0.1:1") as client, pytest.raises(Unreadable, match="can't be read"):
        client.predict("a\0b")


def test_requests_at_once_are_bounded_and_pictures_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"picture"

    with answering(200, delay=0.02) as (url, seen), DenseNetClient(url) as client:
        results = client.predict_many(endless(), concurrency=3)
        for number in range(1, 40):
            assert next(results).answer == SAMOYED
            assert taken <= number + window_size(3)
    assert seen.most == 3


def test_a_batch_can_be_left() -> None:
    with answering(200, delay=0.05) as (url, seen), DenseNetClient(url) as client:
        for result in client.predict_many([b"picture"] * 1000, concurrency=2):
            assert result.answer
            break
    assert len(seen.requests) < 20
    client.close()  # again: nothing happens


def test_a_client_serves_several_threads() -> None:
    with answering(200, delay=0.01) as (url, seen), DenseNetClient(url) as client:
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(client.predict(b"x"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [SAMOYED] * 8
    assert seen.most > 1


def test_asynchronously() -> None:
    async def run(url: str) -> None:
        async with AsyncDenseNetClient(url) as client:
            assert await client.predict(b"picture") == SAMOYED
            results = [r async for r in client.predict_many([b"a", b"b", b"c", b"d"], topk=2, concurrency=2)]
            assert [(r.picture, r.answer) for r in results] == [(p, SAMOYED) for p in (b"a", b"b", b"c", b"d")]
            async for result in client.predict_many([b"x"] * 1000, concurrency=2):
                assert result.answer
                break

    with answering(200, delay=0.2) as (url, seen):
        asyncio.run(run(url))
    assert seen.most == 2
    assert len(seen.requests) < 20


def test_asynchronously_a_server_that_is_gone_ends_the_batch() -> None:
    async def run(url: str) -> None:
        async with AsyncDenseNetClient(url, patience=0) as client:
            with pytest.raises(Unavailable):
                async for _ in client.predict_many([b"x"] * 3):
                    pass

    with answering(503) as (url, _):
        asyncio.run(run(url))


def test_answers_are_typed_and_keep_all_that_was_sent() -> None:
    sent = {**ANSWER, "top": [ANSWER, {"label": "crane", "index": 7, "probability": 0.05}]}
    answer = Answer.from_json(sent)
    assert answer.top == (Prediction("Samoyed", 1, 0.9), Prediction("crane", 7, 0.05))
    assert answer.to_dict() == sent
    assert Answer.from_json(ANSWER).to_dict() == ANSWER


def test_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inference_token(1024) is None
    monkeypatch.setenv("DENSENET_TOKEN", "t")
    assert inference_token(1024) == "t"
