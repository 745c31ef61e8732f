"""Hostile requests against the real server; the long form is tests/endurance/fuzz.py."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from scripts.lib.server import LOG, find_server
from tests.endurance import fuzz
from tests.endurance.command import options
from tests.endurance.fuzzing import GOOD, Hostile
from tests.support.clients.wire import exchange
from tests.support.hostile import http as hostile
from tests.support.hostile.http import FORM, MULTIPART, form_of, inputs, request
from tests.support.machine.processes import server_processes
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running, serving

TIMEOUT_S = 60
TOO_MANY_FIELDS = b"received a form of more than 128 fields; send the picture as the body, or as one multipart field"
UNREADABLE = b"received a form that can't be parsed; send the picture as the body with its content type"
NO_PICTURE = b"bytes that are no picture"


def test_hostile_requests_get_2xx_or_4xx_and_harm_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "ALONE", 30)
    monkeypatch.setattr(fuzz, "REST_S", 0)
    report = fuzz.judge(server, options(fuzz.add_options, "--inputs", "1000", "--grpc", "200", "--clients", "1"))
    print(report.text())
    assert not report.broken(), report.text()
    assert {"200", "400"} <= set(report.hostile.answers)
    assert len(report.hostile.kinds) > 30


@pytest.mark.parametrize("bomb", hostile.bombs(), ids=lambda b: b.name)
def test_bomb_is_answered(server: Running, bomb: hostile.Bomb) -> None:
    reply = exchange(server.port, request(bomb.data), TIMEOUT_S)
    expected = {"served": 200, "ImageTooLarge": 413}.get(bomb.answer, 400)
    assert (reply.status, reply.is_proper) == (expected, True), reply.body


FIELD = b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n'
FORMS = {
    "31-MB-of-empty-fields": (request(b"a&" * (31 * 2**19), FORM), NO_PICTURE),
    "31-MB-of-empty-fields-of-ours": (
        request(b"topk=" + b"&" * (31 * 2**20), FORM),
        b"more than 16 fields in the form",
    ),
    "500000-parts": (request(b"".join(FIELD % i for i in range(500_000)) + b"--b--\r\n", MULTIPART), TOO_MANY_FIELDS),
    "129-parts": (request(b"".join(FIELD % i for i in range(129)) + b"--b--\r\n", MULTIPART), TOO_MANY_FIELDS),
    "128-parts": (request(b"".join(FIELD % i for i in range(128)) + b"--b--\r\n", MULTIPART), b"unknown field"),
    "one-part-described-a-million-times": (
        request(
            b"--b\r\nContent-Disposition: form-data" + b'; x="1"' * 1_000_000 + b"\r\n\r\nx\r\n--b--\r\n", MULTIPART
        ),
        TOO_MANY_FIELDS,
    ),
    "no-form": (request(b"%zz=%", FORM), NO_PICTURE),
    "no-boundary": (request(b"--b", 'Content-Type: multipart/form-data; boundary="'), UNREADABLE),
    "boundary-is-a-quotation-mark": (request(b"x", 'Content-Type: multipart/form-data; boundary="'), UNREADABLE),
}


@pytest.mark.parametrize(("raw", "message"), FORMS.values(), ids=FORMS.keys())
def test_form_of_many_fields_is_refused_by_the_frontend(server: Running, raw: bytes, message: bytes) -> None:
    """CVE-2024-29025: without agent.jar the first took 6 GB and two minutes, and killed the worker."""
    reply = exchange(server.port, raw, TIMEOUT_S)
    assert (reply.status, reply.is_proper) == (400, True)
    assert message in reply.body


LOOK_FOR_LEAKS = "-Dio.netty.leakDetection.level=paranoid -Xmn8m"
"""Netty logs each of its buffers that Java's collector, which runs every 8 MB here, finds unreleased."""


@pytest.mark.slow
def test_no_request_leaves_a_buffer_behind(model_store: Path) -> None:
    """Each picture sent as a form once stayed in memory for ever, and each form that can't be parsed."""
    picture = request(form_of(CHELSEA.read_bytes()), MULTIPART)
    forms = [picture, *(raw for raw, _ in FORMS.values())]
    with serving(model_store, "--workers", "1", JAVA_TOOL_OPTIONS=LOOK_FOR_LEAKS) as server:
        for raw in forms:
            assert exchange(server.port, raw, TIMEOUT_S).status == (200 if raw is picture else 400)
        sent = Hostile()
        for one in islice(inputs(seed=5), 500):
            sent.send(server.port, one)
        for _ in range(100):  # what they make is collected, and all that was left with it
            assert exchange(server.port, GOOD, TIMEOUT_S).status == 200
        running = find_server(server.port)
        assert running is not None
        leaks = [line for line in (running.folder / LOG).read_text("utf-8").splitlines() if "LEAK" in line]
    assert {"multipart", "truncated"} <= set(sent.kinds)
    assert not leaks, leaks[0]


@pytest.mark.parametrize("path", ["/predictions/densenet", "/v2/models/densenet/infer", "/invocations"])
def test_a_text_that_cannot_be_encoded_ends_no_worker(server: Running, path: str) -> None:
    """It once came back in the answer, which TorchServe encodes where an error ends the worker."""
    before = set(server_processes(server))
    for body in (
        rb'{"id":"\ud800","inputs":0}',
        rb'{"\ud800":1}',
        rb'{"instances":[],"\ud800":1}',
        rb'{"data":"\ud800"}',
    ):
        reply = exchange(server.port, request(body, hostile.JSON, path=path), TIMEOUT_S)
        assert (reply.status, reply.is_proper) == (400, True), reply.body
    assert {name for name in before if name.startswith("worker")} <= set(server_processes(server))


@pytest.mark.parametrize("path", ["*", "predictions"])
def test_path_without_a_slash_is_a_clients_error(server: Running, path: str) -> None:
    reply = exchange(server.port, request(b"", path=path), TIMEOUT_S)
    assert reply.status in (404, 405)
    assert reply.is_proper


@pytest.mark.parametrize("path", ["/%zz", "/predictions/%", "/densenet/predict?topk=%zz", "/invocations?a=%"])
def test_what_cannot_be_decoded_is_a_clients_error(server: Running, path: str) -> None:
    """TorchServe says 403, which the front door would take for a refusal of this host."""
    reply = exchange(server.port, request(CHELSEA.read_bytes(), path=path), TIMEOUT_S)
    assert (reply.status, reply.is_proper) == (400, True)
    assert b"received what can't be decoded: " in reply.body


def test_json_of_any_depth_is_a_clients_error(server: Running) -> None:
    for depth in (100, 10_000, 10_000_000):
        reply = exchange(server.port, request(b"[" * depth, hostile.JSON), TIMEOUT_S)
        assert (reply.status, reply.is_proper) == (400, True), depth
