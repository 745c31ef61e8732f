"""The front door, docs/front-door.md: the real nginx before real TorchServe hosts."""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import tritonclient.http
import yaml
from tritonclient.utils import InferenceServerException

from handler.card import sha256_of
from handler.hold import HEADER, PREFIX
from scripts.lib.archive import archive_inputs, archive_path, build_archive
from scripts.lib.environment import java_home
from scripts.lib.model_folder import read_model_folder
from scripts.lib.packed import MODEL_CONFIG
from scripts.lib.paths import BUNDLED, CONFIG, ROOT
from scripts.lib.precision import Wanted, settle
from scripts.lib.server import (
    Server,
    clean_up,
    held_workers,
    read_properties,
    start_server,
    stop_server,
    wait_until_ready,
)
from tests.support.clients.load import PICTURE, load
from tests.support.documents import BLOCK, NUMBER, pattern, steps
from tests.support.hostile.http import jpeg_of_scans
from tests.support.machine.ports import free_ports
from tests.support.machine.programs import program
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import DOG
from tests.support.servers.front_door import FrontDoor, copy_configuration, front_door, make_certificate
from tests.support.servers.running import command
from tests.support.servers.versions import NEW_LABEL, write_golden, write_new_version

TIMEOUT_S = 60
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
PLAIN = {"Content-Type": "image/png"}
QUEUE = 8
"""Requests that wait in a host: soon full, and enough for the load when one host is left."""
GUIDE = (ROOT / "docs" / "front-door.md").read_text(encoding="utf-8")
NGINX_CONF = (CONFIG / "nginx" / "nginx.conf").read_text(encoding="utf-8")
CODE = {".py", ".java", ".js"}


def address(server: Server) -> str:
    """A host as ``hosts.conf`` names it."""
    return f"{server.host}:{server.port}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a queue that is soon full, and a new version of it."""
    store, model = tmp_path_factory.mktemp("store"), read_model_folder(BUNDLED)
    files = archive_inputs(model, *settle(model, Wanted()))
    files[MODEL_CONFIG] = yaml.safe_dump({**yaml.safe_load(files[MODEL_CONFIG]), "jobQueueSize": QUEUE}).encode()
    archive_path(store).write_bytes(build_archive(files))
    write_new_version(store)
    return store


@pytest.fixture(scope="module")
def hosts(store: Path) -> Iterator[list[Server]]:
    """Three hosts, each an address of its own and one worker."""
    servers: list[Server] = []
    first = free_ports(5 * len(HOSTS))
    try:
        for number, host in enumerate(HOSTS):
            servers.append(start_server(store, java_home(), first + 5 * number, host))
        for server in servers:
            wait_until_ready(server)
        yield servers
    finally:
        for server in servers:
            stop_server(server)


@pytest.fixture(scope="module")
def door(hosts: list[Server]) -> Iterator[FrontDoor]:
    """A front door before all three."""
    with front_door(*map(address, hosts)) as door:
        yield door


@pytest.fixture(scope="module")
def label(hosts: list[Server]) -> str:
    """What a host says of the picture."""
    answer = requests.put(f"{hosts[0].url}/predictions/densenet", data=PICTURE, timeout=TIMEOUT_S)
    assert answer.status_code == 200
    return str(answer.json()["label"])


def assert_error(answer: requests.Response, status: int, kind: str, message: str) -> None:
    """An answer in TorchServe's error form."""
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert (error["code"], error["type"]) == (status, kind)
    assert message in error["message"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("retry-after") == ("1" if status in {429, 503} else None)


def raw(door: FrontDoor, head: str) -> str:
    """What is answered to bytes that no client would send."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(head.encode())
        response = HTTPResponse(connection)
        response.begin()
        return f"{response.status} {response.read().decode()}"


# --- The configuration ------------------------------------------------------------------------------


def test_the_configuration_is_accepted_as_it_stands() -> None:
    nginx = program("nginx", package="nginx-light")
    arguments = [nginx, "-t", "-c", str(CONFIG / "nginx" / "nginx.conf")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "[warn] 1" not in result.stderr


def test_every_directive_with_a_number_has_a_comment() -> None:
    """Units and consequences are told; a line belongs to the comment above it, or to the line above it."""
    told = False
    for line in NGINX_CONF.splitlines():
        text = line.strip()
        if not text or text in {"}", "server {", "http {"}:
            told = False
        elif text.startswith("#"):
            told = True
        elif re.match(r"(\w+_)*(timeout|size|rate|conn|req|tries|connections|processes|keepalive)\b.* \d", text):
            assert told, f"no comment above: {text}"


def test_limits_agree_with_the_servers() -> None:
    limit = read_properties(CONFIG / "config.properties")["max_request_size"]
    assert f"client_max_body_size {limit};" in NGINX_CONF
    assert f"at most {limit} bytes" in NGINX_CONF
    model = yaml.safe_load((CONFIG / MODEL_CONFIG).read_text(encoding="utf-8"))
    a_client = re.search(r"limit_conn connections (\d+);", NGINX_CONF)
    assert a_client
    assert int(a_client[1]) < model["jobQueueSize"]


# --- Routes -----------------------------------------------------------------------------------------


def test_programs_are_greeted(door: FrontDoor) -> None:
    answer = requests.get(door.url, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "Predict Dogs!", "text/plain")


def test_browsers_get_the_page_of_the_hosts(door: FrontDoor, hosts: list[Server]) -> None:
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = requests.get(door.url, headers=accept, timeout=TIMEOUT_S)
    direct = requests.get(f"{hosts[0].url}/predictions/densenet", headers=accept, timeout=TIMEOUT_S)
    assert (page.status_code, page.text) == (direct.status_code, direct.text)


@pytest.mark.parametrize("path", ["/predict", "//predict", "/x/../predict"])
def test_the_flask_route_answers_the_label_alone(door: FrontDoor, label: str, path: str) -> None:
    request = requests.Request("POST", door.url, files={"file": ("cat.png", PICTURE)}).prepare()
    request.url = door.url + path
    answer = requests.Session().send(request, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.text) == (200, label)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_the_inference_api_passes(door: FrontDoor, label: str) -> None:
    encoded = {"instances": [{"b64": base64.b64encode(PICTURE).decode()}]}
    predictions = [
        requests.put(door.predictions, data=PICTURE, timeout=TIMEOUT_S),
        requests.post(door.predictions, files={"file": PICTURE}, timeout=TIMEOUT_S),
        requests.put(f"{door.predictions}/1.0", data=PICTURE, timeout=TIMEOUT_S),
        requests.put(f"{door.url}/invocations?topk=1", data=PICTURE, timeout=TIMEOUT_S),
        requests.put(f"{door.url}/densenet/predict?topk=1", data=PICTURE, timeout=TIMEOUT_S),
        requests.put(f"{door.url}/v2/models/densenet/infer", data=PICTURE, timeout=TIMEOUT_S),
        requests.post(f"{door.url}/v1/models/densenet:predict", json=encoded, timeout=TIMEOUT_S),
    ]
    for answer in predictions:
        assert answer.status_code == 200, answer.text
        data = answer.json()
        assert data.get("predictions", [data])[0]["label"] == label
    text = requests.put(door.predictions, data=PICTURE, headers={"Accept": "text/plain"}, timeout=TIMEOUT_S)
    assert text.text == f"{label}\n"
    assert requests.get(f"{door.url}/ping", timeout=TIMEOUT_S).json() == {"status": "Healthy"}
    assert requests.options(door.url, timeout=TIMEOUT_S).json()["info"]["title"] == "TorchServe APIs"
    assert requests.get(f"{door.url}/api-description", timeout=TIMEOUT_S).json()["openapi"]
    assert requests.options(door.predictions, timeout=TIMEOUT_S).status_code == 200
    explained = requests.put(f"{door.url}/explanations/densenet", data=PICTURE, timeout=TIMEOUT_S)
    assert explained.json()["label"] == label


def test_the_open_inference_protocol_s_client_finds_every_path(
    door: FrontDoor, hosts: list[Server], label: str
) -> None:
    """Those that TorchServe lacks, too; hosts alone answer them with 404 (``tests/e2e/test_protocols.py``)."""
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{door.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("densenet")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "Torchserve"
    about = requests.get(f"{hosts[0].url}/densenet/predict", {"about": "metadata"}, timeout=TIMEOUT_S).json()
    assert client.get_model_metadata("densenet") == about
    picture = tritonclient.http.InferInput("image", [1], "BYTES")
    picture.set_data_from_numpy(np.array([PICTURE], dtype=np.object_))
    for version in ("", "1.0"):
        result = client.infer("densenet", [picture], model_version=version, parameters={"topk": 2})
        assert result.as_numpy("label").shape == (1, 2)
        assert result.as_numpy("label")[0, 0].decode() == label
    with pytest.raises(InferenceServerException, match=r"Model version: 9\.9 does not exist"):
        client.infer("densenet", [picture], model_version="9.9")


def test_kserve_v1_s_question_is_answered(door: FrontDoor) -> None:
    answer = requests.get(f"{door.url}/v1/models/densenet", timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()) == (200, {"name": "densenet", "ready": True})
    unknown = requests.get(f"{door.url}/v1/models/nope", timeout=TIMEOUT_S)
    assert_error(unknown, 404, "ModelNotFoundException", "Model not found: nope")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/models"), ("GET", "/models/densenet"), ("DELETE", "/models/densenet/1.0"), ("GET", "/metrics")),
        *(("POST", "/models?url=x.mar"), ("PUT", "/models/densenet?min_worker=0"), ("GET", "/token?type=inference")),
        *(("GET", "/predictions/../models"), ("GET", "/predictions/%2e%2e/metrics"), ("GET", "/favicon.ico")),
    ],
)
def test_management_and_metrics_have_no_route(door: FrontDoor, method: str, path: str) -> None:
    request = requests.Request(method, door.url).prepare()
    request.url = door.url + path
    answer = requests.Session().send(request, timeout=TIMEOUT_S)
    assert_error(answer, 404, "ResourceNotFoundException", "received a path that isn't served")
    uri = path.partition("?")[0]
    assert door.log(request_id=answer.headers["x-request-id"])["upstream"] == "", uri


def test_what_is_checked_is_what_is_sent(door: FrontDoor) -> None:
    """A path that leads through another one reaches the hosts in its short form."""
    answer = raw(door, "GET /models/../ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert '"status": "Healthy"' in answer


def test_internal_headers_do_not_reach_the_hosts(door: FrontDoor, hosts: list[Server]) -> None:
    """With its folder there, a hold would last 30 seconds; a description would come instead of a label."""
    folders = [Path(server.temporary, f"{PREFIX}{secrets.token_hex(16)}") for server in hosts]
    for folder in folders:
        folder.mkdir()
        try:
            headers = {HEADER: folder.name, "describe": "True", "explain": "True"}
            answer = requests.put(door.predictions, data=PICTURE, headers=headers, timeout=TIMEOUT_S)
            assert set(answer.json()) == {"label", "index", "probability"}
            assert not any(folder.iterdir())
        finally:
            folder.rmdir()


def test_answers_carry_an_id_and_the_headers_of_a_careful_site(door: FrontDoor, hosts: list[Server]) -> None:
    answer = requests.put(door.predictions, data=PICTURE, timeout=TIMEOUT_S)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["server"] == "nginx"
    assert "strict-transport-security" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    line = door.log(request_id=answer.headers["x-request-id"])
    assert (line["method"], line["uri"], line["status"]) == ("PUT", "/predictions/densenet", 200)
    assert line["upstream"] in {address(server) for server in hosts}
    assert line["upstream_status"] == "200"
    assert 0 < float(line["upstream_seconds"]) <= line["seconds"] + 0.01


def test_headers_of_the_servers_own_pass_in_neither_direction() -> None:
    """Whatever frontend, handler and front door tell each other, a client can neither say nor read."""
    files = (path for folder in ("handler", "scripts") for path in (ROOT / folder).rglob("*") if path.suffix in CODE)
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    names = {name.lower() for name in re.findall(r"\bX-Densenet-[\w-]+", text, re.IGNORECASE)}
    assert {"x-densenet-hold", "x-densenet-patience", "x-densenet-busy"} <= names
    for directive in ("proxy_set_header", "proxy_hide_header"):
        dealt_with = {name.lower() for name in re.findall(rf"{directive} (X-Densenet-[\w-]+)", NGINX_CONF)}
        assert names <= dealt_with, directive


# --- Errors -----------------------------------------------------------------------------------------


def test_a_method_that_a_route_lacks_is_refused(door: FrontDoor) -> None:
    for answer in (
        requests.get(f"{door.url}/predict", timeout=TIMEOUT_S),
        requests.put(f"{door.url}/predict", data=PICTURE, timeout=TIMEOUT_S),
        requests.post(door.url, timeout=TIMEOUT_S),
    ):
        assert_error(answer, 405, "MethodNotAllowedException", "accepted are GET / and POST /predict")


def test_the_hosts_own_errors_pass(door: FrontDoor) -> None:
    bad = requests.put(door.predictions, data=b"no picture", timeout=TIMEOUT_S)
    assert_error(bad, 400, "InvalidImage", "received 10 bytes that are no picture")
    flask = requests.post(f"{door.url}/predict", files={"file": b"no picture"}, timeout=TIMEOUT_S)
    assert_error(flask, 400, "InvalidImage", "received 10 bytes that are no picture")
    many = {"instances": [{"data": "aGVsbG8="}] * 65}
    assert_error(requests.post(door.predictions, json=many, timeout=TIMEOUT_S), 413, "TooManyInstances", "at most 64")
    form = {"Content-Type": 'multipart/form-data; boundary="'}
    answer = requests.post(door.predictions, data=PICTURE, headers=form, timeout=TIMEOUT_S)
    assert_error(answer, 400, "BadRequestException", "received a form that can't be parsed")
    for path in ("/densenet/predict?topk=%zz", "/invocations?a=%"):
        undecodable = raw(door, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert undecodable.startswith("400 ")
        assert "received what can't be decoded: " in undecodable
    unknown = requests.put(f"{door.url}/predictions/nope", data=PICTURE, timeout=TIMEOUT_S)
    assert_error(unknown, 404, "ModelNotFoundException", "Model not found: nope")


@pytest.mark.parametrize("route", ["/predictions/densenet", "/predict", "/v1/models/densenet:predict"])
def test_a_large_body_is_refused(door: FrontDoor, route: str) -> None:
    size = int(read_properties(CONFIG / "config.properties")["max_request_size"])
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: {size + 1}\r\n\r\n"
    assert raw(door, head).startswith(
        '413 {"code": 413, "type": "RequestTooLarge", "message": "received more than 32 MiB; accepted are'
    )


CHUNKED = "POST {route} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"


@pytest.mark.parametrize("route", ["/predictions/densenet", "/predict", "/v1/models/densenet:predict", "/ping"])
def test_what_is_no_chunk_is_refused(door: FrontDoor, route: str) -> None:
    """In the error form, and no host hears of it."""
    size, before = int(read_properties(CONFIG / "config.properties")["max_request_size"]), len(door.lines())
    for chunks in ("-1\r\n", "zz\r\nab\r\n0\r\n\r\n", "5\r\nab", f"{'f' * 17}\r\n"):
        end = "\r\n0\r\nx\r\n\r\n"
        answer = raw(door, CHUNKED.format(route=route, chunks=chunks + end))
        assert answer.startswith('400 {"code": 400, "type": "InvalidRequest"'), (chunks, answer)
    answer = raw(door, CHUNKED.format(route=route, chunks=f"{size + 1:x}\r\nab"))
    assert answer.startswith('413 {"code": 413, "type": "RequestTooLarge"'), answer
    wait_until(lambda: len(door.lines()) == before + 5, TIMEOUT_S)
    assert {line["upstream"] for line in door.lines()[before:]} == {""}


def test_chunks_are_put_together(door: FrontDoor, label: str) -> None:
    pieces = (PICTURE[start : start + 1000] for start in range(0, len(PICTURE), 1000))
    assert requests.put(door.predictions, data=pieces, timeout=TIMEOUT_S).json()["label"] == label


def test_what_is_no_http_is_refused(door: FrontDoor) -> None:
    garbage = raw(door, "no such thing\r\n\r\n")
    headers = raw(door, f"GET / HTTP/1.1\r\nHost: x\r\nX-Long: {'a' * 40_000}\r\n\r\n")
    coding = raw(door, "POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n")  # else 501
    version = raw(door, "GET / HTTP/9.9\r\nHost: x\r\n\r\n")  # else 505
    for answer in (garbage, headers, coding, version):
        assert answer.startswith('400 {"code": 400, "type": "InvalidRequest", "message": "received a request that isn')


@pytest.mark.slow
def test_a_client_writes_no_escape_and_no_line_into_the_logs() -> None:
    """No host answers: whatever passes becomes an error, which nginx logs with path, host and referrer as they came."""
    requests_with = {
        "/predictions/a": "Host: a\r\nReferer: \x1b]0;x\x07",
        "/predictions/b": "Host: \x1b[31ma",
        "/predictions/c": "Host: a\r\nReferer: \x9b31m",
        "/predictions/\x9b31m": "Host: a",
        "/predictions/%0aFORGED%1b[31m": "Host: a",
        "/error": "Host: a\r\nReferer: \x1b[31m",
        "/x": 'Host: a\r\nUser-Agent: \x1b[31m"}',
        "/predictions/d": "Host: a\r\nReferer: http://bücher.example/",
    }
    with front_door("127.0.0.1:9") as door:
        answers = [
            raw(door, f"POST {path} HTTP/1.1\r\n{headers}\r\nContent-Length: 0\r\n\r\n")
            for path, headers in requests_with.items()
        ]
        assert [answer[:3] for answer in answers] == ["400"] * 5 + ["404", "404", "503"], answers
        assert door.log(user_agent='\x1b[31m"}')["status"] == 404
        assert door.log(status=503)["uri"] == "/predictions/d"
        access, errors = (door.folder / "access.log").read_bytes(), door.errors()
    assert (access.count(b"\n"), errors.count("\n")) == (len(requests_with), 1)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", access + errors.encode())


def test_slow_clients_are_cut_off_and_disturb_nobody(hosts: list[Server], label: str) -> None:
    with front_door(address(hosts[0]), replace={"_timeout 10s": "_timeout 1s"}) as door:
        connections = []
        for head in ("GET / HT", "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"):
            connections.append(socket.create_connection(("127.0.0.1", door.port), timeout=TIMEOUT_S))
            connections[-1].sendall(head.encode())
        assert requests.put(door.predictions, data=PICTURE, timeout=TIMEOUT_S).json()["label"] == label
        for connection in connections:
            with connection:
                try:
                    rest = connection.recv(65536)
                except ConnectionResetError:
                    rest = b""
                assert rest == b"" or b" 408 " in rest


def test_each_client_has_a_rate_and_a_number_of_requests(hosts: list[Server]) -> None:
    limits = {"rate=200r/s": "rate=1r/m", "burst=400": "burst=2"}
    with front_door(address(hosts[0]), replace=limits) as door:
        answers = [requests.get(f"{door.url}/ping", timeout=TIMEOUT_S) for _ in range(6)]
        assert [a.status_code for a in answers[:3]] == [200, 200, 200]
        assert_error(answers[3], 429, "TooManyRequests", "received more requests than can be served now")
    with front_door(address(hosts[0]), replace={"limit_conn connections 64": "limit_conn connections 1"}) as door:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            with socket.create_connection(("127.0.0.1", door.port), timeout=TIMEOUT_S) as unfinished:
                unfinished.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
                second = requests.get(f"{door.url}/ping", timeout=TIMEOUT_S)
            if not second.ok:
                break
            assert time.monotonic() < deadline, "a second request of the client was never refused"
        assert_error(second, 429, "TooManyRequests", "send fewer at once")


@pytest.mark.parametrize("route", ["/explanations/densenet", "/v1/models/densenet:explain"])
def test_each_client_has_few_explanations_at_once(hosts: list[Server], label: str, route: str) -> None:
    """They may hold a worker for seconds; predictions beside them have their own number."""
    with front_door(address(hosts[0]), replace={"limit_conn explanations 4": "limit_conn explanations 1"}) as door:

        def refused() -> bool:
            with socket.create_connection(("127.0.0.1", door.port), timeout=TIMEOUT_S) as unfinished:
                unfinished.sendall(f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc".encode())
                second = requests.put(f"{door.url}/%65xplanations/densenet", data=PICTURE, timeout=TIMEOUT_S)
                assert requests.put(door.predictions, data=PICTURE, timeout=TIMEOUT_S).json()["label"] == label
            if second.ok:
                return False
            assert_error(second, 429, "TooManyRequests", "send fewer at once")
            return True

        wait_until(refused, TIMEOUT_S)


# --- Hosts that are busy, silent or dead --------------------------------------------------------------


def test_a_full_queue_is_429_and_another_host_is_asked_first(hosts: list[Server], label: str) -> None:
    def put(url: str) -> requests.Response:
        return requests.put(url, data=PICTURE, timeout=TIMEOUT_S)

    with (
        front_door(address(hosts[0])) as one,
        front_door(*map(address, hosts[:2])) as two,
        ThreadPoolExecutor(QUEUE + 1) as pool,
    ):
        with held_workers(hosts[0]):
            direct = [pool.submit(put, f"{hosts[0].url}/predictions/densenet") for _ in range(QUEUE + 1)]
            refused = next(as_completed(direct)).result()
            assert refused.status_code == 503, "the queue isn't full"
            answer = put(one.predictions)
            assert_error(answer, 429, "TooManyRequests", "try again in a second")
            flask = requests.post(f"{one.url}/predict", files={"file": PICTURE}, timeout=TIMEOUT_S)
            assert_error(flask, 429, "TooManyRequests", "try again in a second")
            instances = {"instances": [{"b64": base64.b64encode(PICTURE).decode()}]}
            v1 = requests.post(f"{one.url}/v1/models/densenet:predict", json=instances, timeout=TIMEOUT_S)
            assert_error(v1, 429, "TooManyRequests", "try again in a second")
            ready = requests.get(f"{one.url}/v2/health/ready", timeout=TIMEOUT_S)
            assert_error(ready, 429, "TooManyRequests", "try again in a second")
            others = [put(two.predictions) for _ in range(6)]
        assert sorted(f.result().status_code for f in direct) == [*[200] * QUEUE, 503]
    assert [(answer.status_code, answer.json()["label"]) for answer in others] == [(200, label)] * 6
    print(f"queue full: one host 429 with Retry-After {answer.headers['retry-after']} s; two hosts 6 of 6 answered")


def workers_of(server: Server) -> list[psutil.Process]:
    """A host's worker processes."""
    return [psutil.Process(worker.pid) for worker in server.management.status().workers]


def test_a_host_that_hangs_costs_the_request_that_its_worker_has(hosts: list[Server], label: str) -> None:
    """Nothing but time tells it apart from one that works. No other host gets what it is silent about.

    What waits behind that is refused after 10 seconds, and gets the answer of another host. The front door waits for
    13 seconds here, where it waits for 45 elsewhere.
    """
    silent = 13
    stopped = workers_of(hosts[0])
    replace = {"proxy_read_timeout 45s": f"proxy_read_timeout {silent}s"}
    with (
        front_door(address(hosts[0]), replace=replace) as one,
        front_door(*map(address, hosts[:2]), replace=replace) as two,
    ):
        for worker in stopped:
            worker.suspend()
        try:
            start = time.monotonic()
            answer = requests.put(one.predictions, data=PICTURE, timeout=TIMEOUT_S)
            took = time.monotonic() - start
            assert_error(answer, 503, "ServiceUnavailableException", "no server answers now")
            assert silent <= took < 30
            with load(two.predictions, threads=4) as running:
                wait_until(lambda: any(line["upstream_status"] == "403, 200" for line in two.lines()), TIMEOUT_S)
        finally:
            for worker in stopped:
                worker.resume()
        running.report("workers of host 1 of 2 stopped")
        assert set(running.answers) == {200}, two.lost()
        assert set(running.labels) == {label}
        wait_until(lambda: requests.put(one.predictions, data=PICTURE, timeout=TIMEOUT_S).ok, TIMEOUT_S)
        assert requests.put(one.predictions, data=PICTURE, timeout=TIMEOUT_S).json()["label"] == label
    print(f"silent workers: 503 after {took:.1f} s of {silent}")


def test_slow_pictures_cost_no_host_and_no_other_request(hosts: list[Server], label: str) -> None:
    """Twelve of a client at once, before two hosts: none is asked of a second one, and the others' are all served."""
    slow = jpeg_of_scans(3000, 6000)

    def send(url: str) -> requests.Response:
        return requests.put(url, data=slow, headers={"User-Agent": "slow"}, timeout=4 * TIMEOUT_S)

    with front_door(*map(address, hosts[:2])) as door, ThreadPoolExecutor(12) as pool:
        pictures = [pool.submit(send, door.predictions) for _ in range(12)]
        with load(door.predictions, threads=2) as running:
            running.wait_for(20, 4 * TIMEOUT_S)
        answers = [picture.result() for picture in pictures]
        wait_until(lambda: sum(line["user_agent"] == "slow" for line in door.lines()) == 12, TIMEOUT_S)
        lines = [line for line in door.lines() if line["user_agent"] == "slow"]
        lost, errors = door.lost(), door.errors()
    running.report(f"beside 12 slow pictures ({Counter(answer.status_code for answer in answers)})")
    assert set(running.answers) == {200}, lost
    assert set(running.labels) == {label}
    for answer in answers:
        assert answer.status_code in {200, 429, 503}, answer.text
        assert answer.ok or answer.headers["retry-after"] == "1"
    assert {line["upstream"] for line in lines if line["status"] == 200} <= {address(host) for host in hosts[:2]}
    assert "no live upstreams" not in errors
    assert "timed out" not in errors


def test_workers_that_cannot_start_are_503_within_five_seconds_on_every_route(hosts: list[Server], label: str) -> None:
    """TorchServe by itself would leave these without an answer; another host gives its own, even if a third is dead."""
    instance = {"b64": base64.b64encode(PICTURE).decode()}
    v2 = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [instance["b64"]]}]}
    forms: dict[str, dict[str, object]] = {
        "/predictions/densenet": {"data": PICTURE},
        "/predict": {"files": {"file": PICTURE}},
        "/explanations/densenet": {"data": PICTURE},
        "/v1/models/densenet:predict": {"json": {"instances": [instance]}},
        "/v2/models/densenet/infer": {"json": v2},
    }

    def post(door: FrontDoor, route: str) -> requests.Response:
        return requests.post(f"{door.url}{route}", timeout=TIMEOUT_S, **forms[route])  # type: ignore[arg-type]

    (handler,) = Path(hosts[0].temporary).rglob("densenet_handler.py")
    text = handler.read_text(encoding="utf-8")
    with (
        front_door(address(hosts[0])) as one,
        front_door(*map(address, hosts[:2])) as two,
        front_door(f"127.0.0.5:{free_ports()}", *map(address, hosts[:2])) as three,
        ThreadPoolExecutor() as pool,
    ):
        try:
            handler.write_text("raise RuntimeError('broken by a test')\n", encoding="utf-8")
            for worker in workers_of(hosts[0]):
                worker.kill()
            wait_until(lambda: not hosts[0].management.status().ready, TIMEOUT_S, lambda: "the worker lives")
            answers = dict(zip(forms, pool.map(post, [one] * len(forms), forms)))
            others = [post(door, route).status_code for door in (two, three) for route in forms for _ in range(4)]
        finally:
            handler.write_text(text, encoding="utf-8")
        for route, answer in answers.items():
            assert_error(answer, 503, "ServiceUnavailableException", "no server answers now; try again in a second")
            assert answer.elapsed.total_seconds() < 10, route  # and what a busy machine adds
        assert set(others) == {200}
        wait_until(lambda: hosts[0].management.status().ready, TIMEOUT_S, lambda: "no worker came back")
        assert post(one, "/predict").text == label
    slowest = max(answer.elapsed.total_seconds() for answer in answers.values())
    print(
        f"no worker can start: 503 on {len(forms)} routes after {slowest:.1f} s at most; with another host all answered"
    )


def test_a_worker_dies_and_its_request_alone_is_lost(hosts: list[Server], door: FrontDoor, label: str) -> None:
    """No other host gets it: what killed one worker would kill the next. Its client is told by a type of its own."""
    with load(door.predictions, threads=4) as running:
        wait_until(lambda: len(running.answers) > 20, TIMEOUT_S)
        (worker,) = workers_of(hosts[0])
        worker.kill()
        deadline = time.monotonic() + TIMEOUT_S
        while not (status := hosts[0].management.status()).ready or status.workers[0].pid == worker.pid:
            assert time.monotonic() < deadline, "the worker doesn't come back"
            time.sleep(0.1)
        running.wait_for(20)
    running.report("worker of host 1 of 3 killed (-9)")
    assert set(running.answers) <= {200, 503}, door.lost()
    assert running.answers.count(503) <= 1, door.lost()
    assert set(running.labels) == {label}


@contextmanager
def deadly(host: Server) -> Iterator[None]:
    """Each worker of a host that starts now dies of each request, while the block runs."""
    (handler,) = Path(host.temporary).rglob("densenet_handler.py")
    text = handler.read_text(encoding="utf-8")
    before = [worker.pid for worker in workers_of(host)]

    def renewed() -> bool:
        status = host.management.status()
        return status.ready == len(before) and not {worker.pid for worker in status.workers} & set(before)

    try:
        ends = '    def handle(self, *_):\n        __import__("os")._exit(1)\n\n    def _('
        handler.write_text(text.replace("    def handle(", ends, 1), encoding="utf-8")
        for worker in workers_of(host):
            worker.kill()
        wait_until(renewed, TIMEOUT_S, lambda: "no new worker")
        yield
    finally:
        handler.write_text(text, encoding="utf-8")
        with suppress(psutil.NoSuchProcess):
            for worker in workers_of(host):
                worker.kill()
        wait_until(lambda: host.management.status().ready, TIMEOUT_S, lambda: "no worker came back")


def test_what_a_worker_died_of_is_sent_to_no_other_host(hosts: list[Server]) -> None:
    with deadly(hosts[0]), front_door(*map(address, hosts[:2])) as door:
        for route in ("/predictions/densenet", "/predict", "/v2/models/densenet/infer"):
            wait_until(lambda: hosts[0].management.status().ready, TIMEOUT_S)

            def died(route: str = route) -> bool:
                answer = requests.post(door.url + route, data=PICTURE, headers=PLAIN, timeout=TIMEOUT_S)
                line = door.log(request_id=answer.headers["x-request-id"])
                if line["upstream"] == address(hosts[1]):
                    return False
                assert line["upstream"] == address(hosts[0])
                assert_error(
                    answer,
                    503,
                    "WorkerDied",
                    "the worker died with this request; send it once more",
                )
                assert not [name for name in answer.headers if name.lower().startswith("x-densenet")]
                return True

            wait_until(died, TIMEOUT_S)


@pytest.mark.slow
def test_no_host_at_all_is_503_at_once() -> None:
    with front_door(f"127.0.0.2:{free_ports()}", f"127.0.0.3:{free_ports()}") as door:
        answer = requests.put(door.predictions, data=PICTURE, timeout=TIMEOUT_S)
        assert_error(answer, 503, "ServiceUnavailableException", "no server answers now; try again in a second")
        assert float(door.log(status=503)["seconds"]) < 5
        assert requests.get(door.url, timeout=TIMEOUT_S).text == "Predict Dogs!"


def test_a_host_dies_and_another_is_restarted_and_no_request_is_lost(
    hosts: list[Server], door: FrontDoor, store: Path, label: str
) -> None:
    def start(server: Server) -> Server:
        started = start_server(store, java_home(), server.port, server.host)
        wait_until_ready(started)
        return started

    with load(door.predictions, threads=4) as running:
        process = hosts[0].process()
        assert process
        for victim in (process, *process.children(recursive=True)):
            os.kill(victim.pid, signal.SIGKILL)
        running.wait_for(20)
        killed = len(running.answers)
        stop_server(hosts[1])
        running.wait_for(20)
        hosts[1] = start(hosts[1])
        running.wait_for(20)
        clean_up(hosts[0].port)
        hosts[0] = start(hosts[0])
        running.wait_for(20)
    running.report(f"host 1 of 3 killed (-9; {killed} answers by then), host 2 restarted, host 1 back")
    assert set(running.answers) == {200}, door.lost()
    assert set(running.labels) == {label}
    attempts = (door.folder / "access.log").read_text(encoding="utf-8")
    assert all(f'"upstream":"{address(server)}"' in attempts for server in hosts)
    assert re.search(r'"upstream":"[^"]+, [^"]+"', attempts), "no request was sent again"


def test_a_new_version_is_rolled_out_host_by_host_and_no_request_is_lost(
    hosts: list[Server], door: FrontDoor, store: Path, label: str, tmp_path: Path
) -> None:
    archive, golden = str(archive_path(store, "2.0")), write_golden(tmp_path, NEW_LABEL + label)
    with load(door.predictions, threads=4) as running:
        for server in hosts:
            result = command("deploy.py", archive, "--golden", golden, "--port", str(server.port))
            assert result.returncode == 0, result.stderr
        running.wait_for(12)
    running.report("version 2.0 rolled out on three hosts")
    assert set(running.answers) == {200}, door.lost()
    assert set(running.labels) == {label, NEW_LABEL + label}
    now = {requests.put(door.predictions, data=PICTURE, timeout=TIMEOUT_S).json()["label"] for _ in range(6)}
    assert now == {NEW_LABEL + label}
    for server in hosts:
        assert command("deploy.py", "--rollback", "--port", str(server.port)).returncode == 0


# --- TLS, run_me, the guide ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder)
    return folder


def test_tls_is_switched_on_by_one_file(hosts: list[Server], certificate: Path, label: str) -> None:
    with front_door(address(hosts[0]), tls=certificate) as door:
        url, trusted = door.url.replace("http:", "https:"), str(certificate / "certificate.pem")
        answer = requests.post(f"{url}/predict", files={"file": PICTURE}, verify=trusted, timeout=TIMEOUT_S)
        assert (answer.status_code, answer.text) == (200, label)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert answer.headers["x-content-type-options"] == "nosniff"
        plain = requests.get(door.url, timeout=TIMEOUT_S)
        assert_error(plain, 400, "InvalidRequest", "received a request that isn't proper HTTP")
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(url, timeout=TIMEOUT_S)


def run_me(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``run_me.sh`` in a folder with a picture of the test's own."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "dog.jpg").write_bytes(PICTURE)
    shutil.copy(ROOT / "run_me.sh", folder)
    return subprocess.run(
        [str(folder / "run_me.sh")],
        env={**os.environ, "DENSENET_URL": url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_run_me_prints_the_label(door: FrontDoor, hosts: list[Server], label: str, tmp_path: Path) -> None:
    """Through the front door, and of a server alone; with an exit code when there is none."""
    for url in (door.url, hosts[0].url):
        result = run_me(url, tmp_path)
        assert (result.returncode, result.stdout) == (0, f"{label}\n"), result.stderr
    assert run_me(f"http://127.0.0.1:{free_ports()}", tmp_path).returncode != 0


def test_run_me_is_the_same_on_windows() -> None:
    shell = (ROOT / "run_me.sh").read_text(encoding="utf-8")
    batch = (ROOT / "run_me.bat").read_bytes().decode()
    assert batch.count("\n") == batch.count("\r\n")
    assert "set PICTURE=images\\dog.jpg\r\n" in batch
    assert "\nPICTURE=images/dog.jpg\n" in shell
    arguments = '-sS --fail-with-body -H "Accept: text/plain" -F "file=@{}" "{}/predictions/densenet"'
    assert arguments.format("$PICTURE", "${DENSENET_URL:-http://127.0.0.1:5000}") in shell
    assert arguments.format("%PICTURE%", "%DENSENET_URL%") in batch


@pytest.mark.slow
@pytest.mark.skipif(not DOG.is_file(), reason="the guide's picture isn't in ../shared")
def test_the_guide_does_what_it_says(store: Path, tmp_path: Path) -> None:
    """Its commands, in order, on free ports and without the internet."""
    port, view = free_ports(6), tmp_path / "view"
    (view / "images").mkdir(parents=True)
    shutil.copy(DOG, view / "images")
    shutil.copy(ROOT / "run_me.sh", view)
    (view / "scripts").symlink_to(ROOT / "scripts")
    configuration = copy_configuration(tmp_path, [f"127.0.0.1:{port}"], port + 5, tls=False, replace={})
    replace = {
        "python3 scripts/serve.py": f"{sys.executable} scripts/serve.py --workers 1 "
        f"--weights {archive_path(store)} --sha256 {sha256_of(archive_path(store))}",
        "--port 6000": f"--port {port}",
        "$PWD/config/nginx/nginx.conf": str(configuration),
        "daemon off;' &": "user root;' >access.log 2>&1",  # in the background by itself; pytest's folder is root's
        ":5000": f":{port + 5}",
    }
    environment = {**os.environ, "DENSENET_NO_VENV": "1", "DENSENET_URL": f"http://127.0.0.1:{port + 5}"}
    (block,) = [steps(match["text"]) for match in BLOCK.finditer(GUIDE)]
    try:
        for step in block:
            line = step.command
            for old, new in replace.items():
                line = line.replace(old, new)
            result = subprocess.run(
                ["bash", "-c", line],
                cwd=view,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert result.returncode == 0, f"$ {line}\n{result.stdout}{result.stderr}"
            assert pattern(step.output).fullmatch(NUMBER.sub("0", result.stdout.strip())), result.stdout
    finally:
        os.kill(int((tmp_path / "nginx.pid").read_text(encoding="ascii")), signal.SIGTERM)
        assert command("stop.py", "--port", str(port)).returncode == 0
