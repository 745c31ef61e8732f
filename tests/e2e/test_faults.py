"""Faults of the machine and of processes: each has a defined end, none a half file or a hang."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
import requests
from PIL import ExifTags, Image

from scripts.lib.archive import archive_path
from scripts.lib.management import Management
from scripts.lib.paths import ROOT, RUN
from scripts.lib.server import find_server, held_workers, run_folder
from tests.endurance import kill_workers
from tests.endurance.command import options
from tests.endurance.fuzzing import GOOD
from tests.support.clients.load import load
from tests.support.clients.wire import exchange
from tests.support.hostile.http import bombs, request
from tests.support.machine.control_groups import Group, memory_group
from tests.support.machine.ports import free_ports
from tests.support.machine.programs import program
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA
from tests.support.pictures.made import save
from tests.support.pictures.scenes import write_scenes
from tests.support.servers.running import Running, command, command_by, in_foreground, serving, wait_for_ready
from tests.support.servers.versions import NEW_LABEL, write_golden, write_new_version

pytestmark = pytest.mark.slow

TIMEOUT_S = 300
PICTURE = CHELSEA.read_bytes()
SPARE_BYTES = 200 * 10**6
"""Memory above what a server uses: 100 million pixels take half a gigabyte."""
OTHERS_BYTES = 3 * 10**9
"""Taken by other processes of the container, of which the server knows nothing."""
TOO_LITTLE_BYTES = 500 * 10**6
"""Less than Java and a worker need together."""


def test_killed_workers_lose_their_own_requests_alone(server: Running) -> None:
    """The long form is tests/endurance/kill_workers.py."""
    kills = kill_workers.judge(server, options(kill_workers.add_options, "--times", "2"))
    print(kills.text())
    assert not kills.broken(), kills.text()


def test_requests_are_refused_while_no_worker_can_start(model_store: Path) -> None:
    """Those that wait, and those that come; with patience for a worker that was only killed."""

    def put(**headers: str) -> requests.Response:
        return requests.put(running.predictions, data=CHELSEA.read_bytes(), headers=headers, timeout=TIMEOUT_S)

    with serving(model_store, "--workers", "1") as running:
        found = find_server(running.port)
        assert found is not None
        time.sleep(1)  # for the frontend to see the worker READY
        (handler,) = Path(found.temporary).rglob("densenet_handler.py")
        text = handler.read_text(encoding="utf-8")
        handler.write_text("raise RuntimeError('can not start')\n", encoding="utf-8")
        os.kill(found.management.status().workers[0].pid, signal.SIGKILL)
        wait_until(lambda: not found.management.status().ready, TIMEOUT_S, lambda: "the worker lives")
        with ThreadPoolExecutor() as pool:
            impatient = pool.submit(put, **{"X-Densenet-Patience": "3"})
            # each start that fails takes one of them along; the last one waits for as long as may be
            patient = [pool.submit(put) for _ in range(3)]
            for answered in as_completed([impatient, *patient]):
                answer = answered.result()
                for_front_door = answered is impatient  # that asks another host
                assert (answer.status_code, answer.headers["retry-after"]) == (403 if for_front_door else 503, "1")
                error = answer.json()
                assert (error["code"], error["type"]) == (503, "ServiceUnavailableException")
                assert error["message"].endswith("; try again in a second")
            waited = max(answered.result().elapsed.total_seconds() for answered in patient)
            assert impatient.result().elapsed.total_seconds() < waited - 3, "7 s less, where nothing else runs"
        assert put().elapsed.total_seconds() < waited - 3, "at once"
        handler.write_text(text, encoding="utf-8")
        wait_until(lambda: found.management.status().ready, TIMEOUT_S, lambda: "no worker came back")
        assert put().status_code == 200


def test_full_queue_refuses_before_the_picture_is_kept(server: Running) -> None:
    """503 with Retry-After, counted and logged as TorchServe's own; a client that asks first (100) sends no picture."""
    found = find_server(server.port)
    assert found is not None
    with ThreadPoolExecutor(101) as pool, held_workers(found):
        waiting = [pool.submit(requests.put, server.predictions, data=b"x", timeout=TIMEOUT_S) for _ in range(101)]
        assert next(as_completed(waiting)).result().status_code == 503, "the queue isn't full"
        counted = requests_total(server)
        for headers in ({}, {"Expect": "100-continue"}):
            answer = requests.put(server.predictions, data=bytes(5_000_000), headers=headers, timeout=TIMEOUT_S)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "as many requests wait as may" in answer.json()["message"]
        raw = request(b"", "Expect: 100-continue", length="5000000", method="PUT")
        assert exchange(server.port, raw, TIMEOUT_S).status == 503
        assert requests_total(server) == counted + 3
    assert Counter(answer.result().status_code for answer in waiting) == {400: 100, 503: 1}
    assert exchange(server.port, GOOD, TIMEOUT_S).status == 200


def requests_total(server: Running) -> float:
    """How many predictions were asked for, by TorchServe's metrics."""
    text = requests.get(f"http://127.0.0.1:{server.port + 2}/metrics", timeout=TIMEOUT_S).text
    return sum(map(float, re.findall(r"^ts_inference_requests_total\{.*\} (\S+)$", text, re.MULTILINE)))


def test_workers_end_with_their_frontend(model_store: Path) -> None:
    with serving(model_store, "--workers", "1") as running:
        found = find_server(running.port)
        java = found.process() if found else None
        assert java is not None
        family = [java, *java.children(recursive=True)]
        os.kill(java.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        status = command("status.py", "--port", str(running.port))
        assert (status.returncode, status.stderr.count("\n")) == (1, 1)


def in_mounts(mounts: str, *arguments: str, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """A command of the project where ``mounts``, lines of shell, were run in a mount namespace of its own."""
    unshare = program("unshare", package="util-linux")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root for a mount namespace")

    def inside(*run: str) -> list[str]:
        return [unshare, "--mount", "sh", "-ec", f"{mounts}\n{shlex.join(run)}"]

    return command_by(inside, *arguments, timeout=timeout)


def read_only(folder: Path) -> str:
    """Shell that makes a folder read-only."""
    path = shlex.quote(str(folder))
    return f"mount --bind {path} {path}; mount -o remount,ro,bind {path}"


def test_full_disk_leaves_the_old_archive(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    # the archive is 23 MB; what lies there already stays as it is
    mounts = f"mount -t tmpfs -o size=1m tmpfs {store}; printf old > {archive_path(store)}; "
    mounts += f"trap 'ls {store} > {tmp_path}/left; cat {archive_path(store)} > {tmp_path}/content' EXIT"
    result = in_mounts(mounts, "build_archive.py", "--weights", "bundled", "--model-store", str(store))
    assert result.returncode == 1
    assert re.fullmatch(r"error: can't write.*: No space left on device; free some space, .*\n", result.stderr)
    assert (tmp_path / "left").read_text() == "densenet.mar\n"
    assert (tmp_path / "content").read_text() == "old"


def test_read_only_model_store_serves_what_is_there_and_refuses_to_build(model_store: Path, tmp_path: Path) -> None:
    arguments = ("build_archive.py", "--weights", "bundled", "--model-store")
    assert command(*arguments, str(model_store)).returncode == 0
    current = in_mounts(read_only(model_store), *arguments, str(model_store))
    assert current.returncode == 0, current.stderr
    assert ": up to date," in current.stdout
    with zipfile.ZipFile(archive_path(model_store)) as archive:
        assert archive.testzip() is None
    empty = in_mounts(read_only(tmp_path), *arguments, str(tmp_path))
    assert empty.returncode == 1
    assert re.fullmatch(r"error: can't write .*densenet\.mar.*: Read-only file system; .*\n", empty.stderr)
    assert not list(tmp_path.iterdir())


def test_server_whose_folder_is_read_only_says_so(model_store: Path) -> None:
    RUN.mkdir(exist_ok=True)
    port = str(free_ports())
    result = in_mounts(
        read_only(RUN), "serve.py", "--weights", "bundled", "--port", port, "--model-store", str(model_store)
    )
    assert result.returncode == 1
    assert re.search(r"^error: can't write .*: Read-only file system; ", result.stderr, re.MULTILINE)


def test_full_disk_for_the_logs_changes_no_answer(model_store: Path) -> None:
    """What can't be written is lost; pictures get their labels all the same."""
    port = str(free_ports())
    RUN.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    serve = (
        f"{python} scripts/serve.py --detach --weights bundled --workers 1 --port {port} --model-store {model_store}"
    )
    mounts = f"""
        mount -t tmpfs -o size=4m tmpfs {RUN}
        {serve} >&2
        trap '{python} scripts/stop.py --port {port} >&2' EXIT
        head -c 8m /dev/zero > {RUN}/filler || true
        test "$(df --output=avail {RUN} | tail -1)" -eq 0
    """
    result = in_mounts(mounts, "predict.py", *[str(CHELSEA)] * 20, "--port", port)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 20


def test_full_disk_deploys_nothing_and_the_old_version_serves(tmp_path: Path) -> None:
    """An archive is unpacked into the temporary folder, which has no place for it."""
    store, port = tmp_path / "store", str(free_ports())
    temporary = Path(tempfile.mkdtemp(prefix="densenet-full-"))  # sockets in it have paths of 107 bytes at most
    new, python = write_new_version(store), shlex.quote(sys.executable)
    golden = write_golden(tmp_path, f"{NEW_LABEL}cat")
    deploy = f"{python} scripts/deploy.py {new} --golden {golden} --port {port}"
    mounts = f"""
        mount -t tmpfs -o size=200m tmpfs {temporary}
        export TMPDIR={temporary}
        {python} scripts/serve.py --detach --weights bundled --workers 1 --port {port} --model-store {store} >&2
        trap '{python} scripts/stop.py --port {port} >&2' EXIT
        head -c 300m /dev/zero > {temporary}/filler || true
        {deploy} 2> {tmp_path}/refused && exit 9
        {python} scripts/deploy.py --list --port {port} > {tmp_path}/list
    """
    result = in_mounts(mounts, "predict.py", str(CHELSEA), "--port", port)
    temporary.rmdir()  # what was mounted there has gone with the namespace
    assert result.returncode == 0, result.stderr
    assert "new " not in result.stdout
    refused = (tmp_path / "refused").read_text(encoding="utf-8")
    assert re.fullmatch(rf"error: {new} needs \d+ MB in {temporary}/.*, and there are 0 MB; free some space\n", refused)
    assert (tmp_path / "list").read_text(encoding="utf-8").count("\n") == 1


def test_full_disk_ends_training_with_a_line(tmp_path: Path) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", per_class=4), tmp_path / "out"
    out.mkdir()
    small = ("--growth-rate", "8", "--blocks", "2,2", "--init-features", "16", "--crop", "48", "--batch", "8")
    train = ("train.py", str(scenes), "--out", str(out), *small, "--epochs", "1")
    mounts = f"mount -t tmpfs -o size=64k tmpfs {out}; trap 'ls {out} > {tmp_path}/left' EXIT"
    result = in_mounts(mounts, *train)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"error: can't write .*: No space left on device; free some space, .*", last), result.stderr
    assert "part" not in (tmp_path / "left").read_text()
    mended = command(*train)
    assert mended.returncode == 0, mended.stderr


@contextmanager
def taken(group: Group, size: int) -> Iterator[None]:
    """So many bytes of a group's memory taken by a process that has nothing to do with the server."""
    code = f"taken = b'x' * {size}; print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen(group.shell(sys.executable, "-c", code), stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def put(port: int, data: bytes) -> requests.Response:
    """A request for a prediction."""
    return requests.put(f"http://127.0.0.1:{port}/predictions/densenet", data=data, timeout=TIMEOUT_S)


def test_out_of_memory_the_decoding_process_goes_first(tmp_path: Path) -> None:
    """Its request gets 413; the good ones beside it, the worker and Java live."""
    port = free_ports()
    large = [bomb.data for bomb in bombs() if bomb.name in {"pixels", "transparent-palette"}]
    with memory_group() as group, in_foreground(group.shell, port, tmp_path) as process:
        wait_for_ready(process, port)
        assert put(port, PICTURE).status_code == 200
        server, management = find_server(port), Management(f"http://127.0.0.1:{port + 1}")
        before = management.status().workers[0].pid
        group.limit(group.used() + OTHERS_BYTES + SPARE_BYTES)
        with taken(group, OTHERS_BYTES), ThreadPoolExecutor(2) as pool:
            for data in large:
                bomb = pool.submit(put, port, data)
                good = [put(port, PICTURE).status_code for _ in range(3)]
                assert good == [200] * 3
                answer = bomb.result()
                assert (answer.status_code, answer.json()["type"]) == (413, "ImageTooLarge")
                assert "more memory to decode than this machine has left" in answer.json()["message"]
        assert group.kills() == len(large)
        assert management.status().workers[0].pid == before
        assert find_server(port) == server and process.poll() is None


def test_pictures_dont_meet_a_containers_limit(tmp_path: Path) -> None:
    """The largest pictures there are, two at a time, some of them of a hundred bytes: 200 or 413, and nothing dies."""
    port, exif = free_ports(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    transparent = Image.new("RGBA", (10_000, 10_000))
    webp = save(transparent, "WEBP", lossless=True, quality=0, method=0, exif=exif)
    assert len(webp) < 200
    large = [webp, *(bomb.data for bomb in bombs() if bomb.name in {"pixels", "transparent-palette"})]
    large += [
        save(transparent, "PNG", exif=exif),
        save(transparent.convert("RGB"), "JPEG", progressive=True, exif=exif),
    ]
    with (
        memory_group(3 * 2**30) as group,
        in_foreground(group.shell, port, tmp_path, workers=2) as process,
        ThreadPoolExecutor(4) as pool,
    ):
        wait_for_ready(process, port)
        management = Management(f"http://127.0.0.1:{port + 1}")
        wait_until(lambda: management.status().ready == 2, TIMEOUT_S)
        before = {worker.pid for worker in management.status().workers}
        for data in (*large, webp):
            answers = [pool.submit(put, port, each).result for each in (data, data, PICTURE)]
            statuses = [answer().status_code for answer in answers]
            print(len(data), statuses, f"{group.peak() / 2**20:,.0f} MiB at most")
            assert set(statuses[:2]) <= {200, 413} and statuses[2] == 200
        answer = put(port, webp)
        assert (answer.status_code, answer.json()["type"]) == (413, "ImageTooLarge")
        assert re.search(r"takes about 1,700 MB of memory to decode; this server has \d+ MB", answer.json()["message"])
        assert group.kills() == 0
        assert group.peak() < 2.7 * 2**30
        assert {worker.pid for worker in management.status().workers} == before


def test_with_too_little_memory_serve_py_ends(tmp_path: Path) -> None:
    """Whichever process the kernel takes, nothing hangs, no archive is half, and ``stop.py`` clears the rest away."""
    port = free_ports()
    with memory_group() as group:
        group.limit(TOO_LITTLE_BYTES)
        with in_foreground(group.shell, port, tmp_path, weights="bundled") as process:
            assert process.wait(timeout=120) != 0
            assert group.kills() > 0
        assert not group.processes(), "stop.py left something running"
    with zipfile.ZipFile(archive_path(tmp_path)) as archive:
        assert archive.testzip() is None


def counters(port: int) -> dict[str, float]:
    """The metrics that only ever grow, by their lines."""
    lines = requests.get(f"http://127.0.0.1:{port + 2}/metrics", timeout=TIMEOUT_S).text.splitlines()
    grow = {line.split()[2] for line in lines if line.startswith("# TYPE") and line.endswith(("counter", "histogram"))}
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    return {name: v for name, v in values.items() if re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", name) in grow}


def test_the_clock_is_set_and_nobody_notices(tmp_path: Path) -> None:
    """A year ahead, then to the day before: a clock of the server's and the commands' own."""
    compiler, library, clock = program("gcc", package="gcc libc6-dev"), tmp_path / "clock.so", tmp_path / "clock"
    source = str(ROOT / "tests" / "support" / "machine" / "clock.c")
    name = f'-DCLOCK_OFFSET="{clock}"'  # not a variable, which the server wouldn't pass on
    subprocess.run([compiler, "-shared", "-fPIC", name, "-o", str(library), source], check=True)
    clock.write_text("0", encoding="ascii")
    own, port = {"LD_PRELOAD": str(library)}, free_ports()
    management = Management(f"http://127.0.0.1:{port + 1}")
    with in_foreground(lambda *serve: list(serve), port, tmp_path, 1, **own) as process:
        wait_for_ready(process, port)
        before, counted = management.status().workers[0].pid, counters(port)
        assert counted
        with load(f"http://127.0.0.1:{port}/predictions/densenet", threads=2) as running:
            for days, workers in ((365, 2), (-1, 1)):
                clock.write_text(str(days * 86400), encoding="ascii")
                running.wait_for(20)
                status = command("status.py", "--port", str(port), **own)
                assert (status.returncode, status.stdout.partition(":")[0]) == (0, "READY"), status.stderr
                now = counters(port)
                assert [name for name, value in counted.items() if now.get(name, 0) < value] == []
                counted = now
                scaled = command("scale.py", str(workers), "--port", str(port), **own)
                assert scaled.returncode == 0, scaled.stderr
                log = (run_folder(port) / "access_log.log").read_text(encoding="utf-8")
                day = datetime.now() + timedelta(days)
                assert day.strftime("%Y-%m-%dT") in log, "the server's clock wasn't set"
        running.report("the clock a year ahead, then a day back")
        assert set(running.answers) == {200}
        assert before in {worker.pid for worker in management.status().workers}
        stopped = command("stop.py", "--port", str(port), **own)
        assert (stopped.returncode, stopped.stdout.partition(" on ")[0]) == (0, "stopped the server")
        assert process.wait(timeout=TIMEOUT_S) == 0, "it ended by itself"
