"""The front door under many large uploads: it has room for as many as it lets in, and the others are told so."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from scripts.lib.paths import CONFIG, ROOT
from scripts.lib.server import read_properties
from tests.support.clients.load import PICTURE
from tests.support.deployment.manifests import KUBERNETES, pod_spec, render
from tests.support.machine.waiting import repeating, wait_until
from tests.support.servers.front_door import FrontDoor, front_door
from tests.support.servers.running import Running, serving

NGINX_CONF = (CONFIG / "nginx" / "nginx.conf").read_text(encoding="utf-8")
LARGEST = int(read_properties(CONFIG / "config.properties")["max_request_size"])
UPLOADS = 64
"""As many as one client may have at once."""
TIMEOUT_S = 120
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


def in_bytes(size: str) -> int:
    """A size as nginx, compose and Kubernetes write it: ``32m``, ``1g``, ``256Mi``."""
    number, unit = re.fullmatch(r"(\d+)([kmg]?)i?", size.lower()).groups()  # type: ignore[union-attr]
    return int(number) * UNITS.get(unit, 1)


@dataclass(frozen=True)
class Room:
    """What a front door has, in bytes: for files below /tmp, and memory beside them."""

    files: int
    memory: int


def rooms() -> dict[str, Room]:
    """The front door's room in compose, where /tmp is memory, and in a cluster."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["front-door"]
    (tmpfs,) = compose["tmpfs"]
    files = in_bytes(re.findall(r"size=(\w+)", tmpfs)[0])
    pod = pod_spec(render(KUBERNETES / "overlays" / "cpu"), "front-door")
    (empty,) = (volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)
    return {
        "compose": Room(files, in_bytes(compose["deploy"]["resources"]["limits"]["memory"]) - files),
        "cluster": Room(in_bytes(empty["sizeLimit"]), in_bytes(pod["containers"][0]["resources"]["limits"]["memory"])),
    }


def number(pattern: str) -> int:
    """What nginx.conf says at a place, ``(…)`` in the pattern, as a number; of bytes where it has a unit."""
    (found,) = set(re.findall(rf"^\s*{pattern}", NGINX_CONF, re.MULTILINE))
    return in_bytes(found)


@pytest.mark.parametrize("where", ["compose", "cluster"])
def test_all_places_together_have_room(where: str) -> None:
    """The sums of docs/front-door.md."""
    room = rooms()[where]
    places = {name: number(rf"limit_conn {name} (\d+);") for name in ("all", "medium", "large", "largest")}
    assert "proxy_max_temp_file_size 0;" in NGINX_CONF, "answers take no file"
    files = places["large"] * (10**7 - 1) + places["largest"] * LARGEST
    assert files <= room.files
    buffer = number(r"client_body_buffer_size (\w+);")
    assert buffer >= 10**6 - 1, "a body of six digits takes no file"
    head, answer = 33 * 2**10, 36 * 2**10  # nginx's defaults: 1k + 4 × 8k, and 4k + 8 × 4k
    zones = sum(in_bytes(size) for size in re.findall(r"^\s*[^#\n]*zone=\w+:(\w+)", NGINX_CONF, re.MULTILINE))
    memory = (
        sum(places[name] for name in ("medium", "large", "largest")) * buffer
        + places["all"] * (10**5 + answer)
        + number(r"worker_connections (\d+);") * head
        + zones
    )
    assert memory <= room.memory * 0.9, "the rest is nginx itself, and TLS"
    told = (ROOT / "docs" / "front-door.md").read_text(encoding="utf-8")
    assert f"{files / 1e6:,.0f} MB" in told
    assert f"{memory / 2**20:,.0f} MiB" in told


# --- Many at once -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The bundled model behind one worker."""
    with serving(tmp_path_factory.mktemp("model_store"), "--workers", "1") as running:
        yield running


def upload(door: FrontDoor, source: str, size: int, all_there: threading.Barrier) -> tuple[int, Any, str | None]:
    """Send a body, its end not before all others have come as far.

    Returns:
        The answer's status, its JSON, and its Retry-After; status 0 for a connection without an answer.
    """
    piece, end = bytes(2**16), 1000
    with socket.create_connection(("127.0.0.1", door.port), TIMEOUT_S, (source, 0)) as connection:
        with suppress(ConnectionError):  # refused before it was whole: the answer may be there all the same
            connection.sendall(
                f"PUT /predictions/densenet HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
            )
            for start in range(0, size - end, len(piece)):
                connection.sendall(piece[: size - end - start])
        all_there.wait(TIMEOUT_S)
        with suppress(ConnectionError):
            connection.sendall(bytes(end))
        try:
            response = HTTPResponse(connection)
            response.begin()
            return response.status, json.loads(response.read()), response.headers["Retry-After"]
        except (OSError, HTTPException):
            return 0, None, None


@contextmanager
def small_requests(door: FrontDoor, source: str) -> Iterator[list[int]]:
    """Predictions of small pictures, one after the other, while the block runs: their statuses."""
    statuses: list[int] = []

    def send() -> None:
        with socket.create_connection(("127.0.0.1", door.port), TIMEOUT_S, (source, 0)) as connection:
            head = f"PUT /predictions/densenet HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PICTURE)}\r\n\r\n"
            connection.sendall(head.encode() + PICTURE)
            response = HTTPResponse(connection)
            response.begin()
            response.read()
            statuses.append(response.status)

    with repeating(send):
        yield statuses


@pytest.mark.parametrize("clients", [1, 8])
def test_many_large_uploads_at_once_are_served_or_told_to_wait(server: Running, clients: int) -> None:
    """On the sizes of the compose file, the smaller ones: no file is written that doesn't fit."""
    room = rooms()["compose"]
    with front_door(f"127.0.0.1:{server.port}", files=room.files) as door:
        all_there = threading.Barrier(UPLOADS)
        with small_requests(door, "127.0.0.100") as small, ThreadPoolExecutor(UPLOADS) as pool:
            sources = [f"127.0.0.{11 + number % clients}" for number in range(UPLOADS)]
            answers = list(pool.map(lambda source: upload(door, source, LARGEST, all_there), sources))
            so_far = len(small)
            deadline = time.monotonic() + TIMEOUT_S
            while len(small) < so_far + 5:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        (worker,) = psutil.Process(int((door.folder / "nginx.pid").read_text(encoding="ascii"))).children()
        highest = int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text())[0]) * 1024
        errors = door.errors()
    statuses = Counter(status for status, _, _ in answers)
    print(f"{UPLOADS} uploads of {LARGEST} bytes by {clients} clients: {dict(statuses)}; nginx at most {highest} bytes")
    assert set(statuses) == {400, 429}, statuses  # zeros are no picture
    assert {(error["code"], retry) for _, error, retry in answers} == {(400, None), (429, "1")}
    assert set(small) == {200}
    assert "No space left" not in errors
    assert highest < min(room.memory for room in rooms().values())


@contextmanager
def dripping(door: FrontDoor, source: str, size: int, count: int) -> Iterator[list[socket.socket]]:
    """``count`` uploads of ``size`` bytes that have begun, and don't end, while the block runs."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            address = ("127.0.0.1", door.port)
            connections.append(stack.enter_context(socket.create_connection(address, TIMEOUT_S, (source, 0))))
            connections[-1].sendall(
                f"PUT /predictions/densenet HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + b"x"
            )
        yield connections


def answered(connections: list[socket.socket]) -> list[int]:
    """The statuses of those that were answered already."""
    statuses = []
    for connection in connections:
        connection.settimeout(0.01)
        with suppress(TimeoutError):
            statuses.append(int(connection.recv(1000).split()[1]))
    return statuses


@pytest.mark.parametrize("size", [LARGEST, 5_000_000])
def test_slow_uploads_of_one_client_leave_places_to_others(server: Running, size: int) -> None:
    with front_door(f"127.0.0.1:{server.port}") as door:
        with dripping(door, "127.0.0.11", size, UPLOADS) as slow:
            wait_until(lambda: len(door.lines()) > 0, TIMEOUT_S)  # refused
            status, error, retry = upload(door, "127.0.0.12", size, threading.Barrier(1))
            assert (status, error["type"], retry) == (400, "InvalidImage", None)
            with small_requests(door, "127.0.0.13") as small:
                wait_until(lambda: len(small) > 5, TIMEOUT_S)
            assert set(small) == {200}
            refused = answered(slow)
        own = number(rf"limit_conn {'own_largest' if size == LARGEST else 'own_large'} (\d+);")
        assert Counter(refused) == {429: UPLOADS - own}


def test_there_are_places_for_all_clients_together(server: Running) -> None:
    with (
        front_door(f"127.0.0.1:{server.port}", replace={"limit_conn all 512": "limit_conn all 4"}) as door,
        ExitStack() as stack,
    ):
        slow = [
            connection
            for host in range(4)
            for connection in stack.enter_context(dripping(door, f"127.0.0.{11 + host}", 10, 1))
        ]

        def refused() -> bool:
            with small_requests(door, "127.0.0.20") as small:
                wait_until(lambda: small, TIMEOUT_S)
            return 429 in small

        wait_until(refused, TIMEOUT_S)
        for connection in slow:
            connection.close()
        wait_until(lambda: not refused(), TIMEOUT_S)
