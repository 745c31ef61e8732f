"""A server in a control group, under everything that takes memory at once, and what is promised about it."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from scripts.lib.paths import BUNDLED
from tests.endurance.fuzzing import GOOD, GROWTH_BYTES
from tests.endurance.promises import Report
from tests.support.clients.wire import exchange
from tests.support.hostile import vocabulary
from tests.support.hostile.http import JSON, MULTIPART, form_of, request
from tests.support.machine.control_groups import Group, memory_group
from tests.support.machine.ports import free_ports
from tests.support.machine.processes import server_processes
from tests.support.machine.waiting import wait_until
from tests.support.pictures.made import bomb
from tests.support.servers.running import Running, command, command_by

GIB = 2**30
ANSWER_TIMEOUT_S = 300
REST_S = 180
"""After the last request, for memory to come back and for the queue to be empty."""
BODY_LIMIT = 32 * 2**20


@dataclass
class Pressure(Report):
    """Answers by load and status, and the server before and after: memory in bytes by process, kills by the kernel."""

    size: int
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    peak: int = 0

    def broken(self) -> list[str]:
        found = [
            f"{load}: {number} answered with {status}"
            for (load, status), number in self.answers.items()
            if not ("200" <= status < "500" or status == "503")
        ]
        if self.kills:
            found.append(f"the kernel ended {self.kills} processes")
        # a decoding process ends and starts as pictures need it
        lasting = [{name for name in memory if not name.startswith("decoder")} for memory in (self.before, self.after)]
        if lasting[0] != lasting[1]:
            found.append(f"{sorted(lasting[0])} became {sorted(lasting[1])}")
        found += [
            f"{name} grew from {self.before[name] / 1e6:.0f} to {size / 1e6:.0f} MB"
            for name, size in self.after.items()
            if name in self.before and size - self.before[name] > GROWTH_BYTES[name.split()[0]]
        ]
        return found

    def slow(self) -> list[str]:
        return []

    def figures(self) -> list[str]:
        lines = [
            f"in {self.size / GIB:.1f} GiB: at most {self.peak / GIB:.2f}, {self.kills} processes ended by the kernel"
        ]
        lines += [f"  {load:<32}{status:<8}{number:>5}" for (load, status), number in sorted(self.answers.items())]
        lines += [
            f"  memory of {name}: {self.before.get(name, 0) / 1e6:.0f} → {size / 1e6:.0f} MB"
            for name, size in self.after.items()
        ]
        return lines


@cache
def loads() -> dict[str, bytes]:
    """Requests that take as much memory as a request may."""
    largest = bomb(10_000)  # 100 million pixels, the most that are decoded
    turned = _webp(9_999)
    margin = 4096
    body = bytes(BODY_LIMIT - margin)
    base64 = b'{"data": "' + b"A" * (BODY_LIMIT - margin) + b'"}'
    numbers = b"[" + b"0," * ((BODY_LIMIT - margin) // 2 - 200) + b"0]"
    pixels = b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": ' + numbers + b"}]}"
    explain = "/explanations/densenet"
    return {
        "picture": GOOD,
        "largest-picture": request(largest),
        "largest-transparent-picture": request(turned),
        "largest-picture-explained": request(largest, path=explain),
        "picture-explained-as-picture": request(vocabulary.PICTURE, "Accept: image/png", path=explain),
        "largest-body": request(body),
        "largest-form": request(form_of(body), MULTIPART),
        "largest-base64": request(base64, JSON),
        "largest-list-of-numbers": request(pixels, JSON, path="/v2/models/densenet/infer"),
    }


def _webp(side: int) -> bytes:
    """A transparent WebP of one colour that is to be turned: about 100 bytes, and the most memory a pixel."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side)).save(buffer, "WEBP", lossless=True, quality=0, method=0, exif=exif)
    return buffer.getvalue()


@contextmanager
def confined(size: int, model_store: Path, workers: int) -> Iterator[tuple[Running, Group]]:
    """A server of the bundled model whose processes have ``size`` bytes together."""
    port = free_ports()
    flags = ("--weights", str(BUNDLED), "--model-store", str(model_store), "--workers", str(workers))
    # the archive is built outside
    built = command("build_archive.py", "--weights", str(BUNDLED), "--model-store", str(model_store))
    assert built.returncode == 0, built.stderr
    with memory_group(size) as group:
        started = command_by(group.shell, "serve.py", "--detach", "--port", str(port), *flags)
        try:
            assert started.returncode == 0, started.stderr + started.stdout
            yield Running(port, model_store, started.stdout), group
        finally:
            command("stop.py", "--port", str(port))


def press(server: Running, group: Group, size: int, rounds: int, at_once: int, port: int | None = None) -> Pressure:
    """Send every load ``at_once`` times at once, one after the other, and then all of them mixed.

    Args:
        server: in ``group`` of ``size`` bytes.
        rounds: how often.
        at_once: requests.
        port: where they are sent; None: straight at the server.
    """
    report = Pressure(size)
    target = port or server.port
    warm_up(target)
    report.before = _memory(server)
    lock = threading.Lock()

    def send(load: str) -> None:
        try:
            reply = exchange(target, loads()[load], ANSWER_TIMEOUT_S)
            status = {None: "closed", -1: "none"}.get(reply.status, str(reply.status))
        except OSError as error:
            status = f"can't connect ({error})"
        with lock:
            report.answers[load, status] += 1

    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(rounds):
            for load in loads():
                list(pool.map(send, [load] * at_once))
            list(pool.map(send, itertools.islice(itertools.cycle(loads()), at_once)))
    try:
        wait_until(lambda: exchange(target, GOOD, ANSWER_TIMEOUT_S).status == 200, REST_S)
        deadline = time.monotonic() + REST_S
        report.after = _memory(server)
        while report.broken() and time.monotonic() < deadline:
            time.sleep(5)
            report.after = _memory(server)
    except (AssertionError, OSError) as error:
        report.answers["picture, afterwards", str(error)] += 1
    report.kills, report.peak = group.kills(), group.peak()
    return report


def warm_up(port: int) -> None:
    """What a worker loads late is loaded, and a decoding process is there."""
    for load in ("picture", "largest-transparent-picture", "picture-explained-as-picture"):
        exchange(port, loads()[load], ANSWER_TIMEOUT_S)


def _memory(server: Running) -> dict[str, int]:
    """RSS in bytes by the name of the process."""
    return {name: process.memory_info().rss for name, process in server_processes(server).items()}
