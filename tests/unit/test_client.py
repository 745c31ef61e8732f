"""The client against a small real HTTP server that answers as TorchServe would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.lib import client as module
from scripts.lib.client import Client, inference_token
from scripts.lib.console import CommandError

ANSWER = {"label": "Samoyed", "index": 1, "probability": 0.9}


@contextmanager
def answering(*statuses: int) -> Iterator[tuple[str, list[str]]]:
    """A server that answers with ``statuses`` in turn, the last one for ever; and the requests it got."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses[min(len(seen), len(statuses) - 1)]
            seen.append(f"{self.path} {self.headers.get('Authorization')} {body.decode()}")
            text = json.dumps(ANSWER if status == 200 else {"code": status, "message": f"because {status}"})
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once."""
    monkeypatch.setattr(module, "BACK_OFF_S", 0)


def test_busy_is_asked_again() -> None:
    with answering(503, 429, 200) as (url, seen):
        client = Client(url, "secret")
        assert client.predict(b"picture", topk=3) == ANSWER
        client.close()
    assert seen == ["/densenet/predict?topk=3 Bearer secret picture"] * 3


def test_a_refusal_is_final() -> None:
    with answering(400) as (url, seen):
        client = Client(url)
        with pytest.raises(CommandError, match=r"^400: because 400$"):
            client.predict(b"picture")
        client.close()
    assert len(seen) == 1


def test_busy_for_ever_is_an_error() -> None:
    with answering(503) as (url, seen):
        client = Client(url)
        with pytest.raises(CommandError, match=r"^503: because 503$"):
            client.predict(b"picture")
        client.close()
    assert len(seen) == 5


def test_files_are_answered_in_order_and_errors_stay_with_their_file(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.jpg" for n in range(20)]
    for file in files[:19]:
        file.write_text("picture", encoding="utf-8")
    with answering(200) as (url, _):
        client = Client(url)
        results = list(client.predict_files(files, None, concurrency=4))
        client.close()
    assert [r.path for r in results] == files
    assert all(r.answer == ANSWER for r in results[:19])
    assert results[19].error == "can't be read: No such file or directory"


def test_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inference_token(1024) is None
    monkeypatch.setenv("DENSENET_TOKEN", "t")
    assert inference_token(1024) == "t"
