"""The commands, as a person runs them, against the real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from scripts.lib.archive import archive_inputs, archive_path, build_archive
from scripts.lib.environment import java_home
from scripts.lib.management import Management
from scripts.lib.model_folder import CARD, LABELS, json_bytes, read_model_folder
from scripts.lib.packed import MODEL_CONFIG
from scripts.lib.paths import BUNDLED, CONFIG, RUN
from scripts.lib.precision import Wanted, settle
from scripts.lib.server import (
    LOG_CONFIG,
    find_server,
    held_workers,
    read_properties,
    start_server,
    stop_server,
    wait_until_ready,
)
from tests.support.clients.load import load, sending
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA, PACKAGED
from tests.support.servers.running import Running, called, command, foreground, serving, wait_for_workers

PICTURE = CHELSEA.read_bytes()


def test_serve_says_what_is_served_and_where(server: Running) -> None:
    assert re.search(r"READY in \d+ s: densenet-pets \(compact, 46 classes\), 2 workers", server.output)
    assert f"curl -T dog.jpg {server.predictions}" in server.output


def test_a_second_server_on_the_port_is_refused(server: Running) -> None:
    result = called("serve.py", "--detach", "--weights", "bundled", "--port", str(server.port))
    assert result.returncode == 1
    assert result.stderr == (
        f"error: a server of this project runs on port {server.port} already; stop it with: "
        f"python3 scripts/stop.py --port {server.port}, or choose another --port\n"
    )


@pytest.mark.parametrize(("offset", "name"), [(0, "inference"), (1, "management"), (4, "gRPC management")])
def test_a_port_in_use_is_named_with_its_owner(offset: int, name: str) -> None:
    port = free_ports()
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", port + offset))
        owner.listen()
        result = called("serve.py", "--detach", "--weights", "bundled", "--port", str(port))
    assert result.returncode == 1
    assert f"error: port {port + offset} ({name}) can't be used" in result.stderr
    assert f"(process {os.getpid()}) listens there" in result.stderr
    assert not (RUN / str(port) / "state.json").exists()


def test_status_of_a_ready_server(server: Running) -> None:
    result = command("status.py", "--port", str(server.port))
    assert result.returncode == 0
    assert result.stdout.startswith("READY: densenet-pets (compact, 46 classes), version 1.0, 2 of 2 workers READY\n")
    data = json.loads(command("status.py", "--json", "--url", server.management).stdout)
    assert data["ready"] == 2
    assert data["card"]["num_classes"] == 46


def test_status_is_ready_while_every_worker_is_busy(server: Running) -> None:
    """A health check that waits behind the requests would restart a server because it has much to do."""
    running = find_server(server.port)
    assert running
    with held_workers(running):
        result = command("status.py", "--port", str(server.port))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("READY: densenet, version 1.0, 2 of 2 workers READY\n")


def test_status_without_a_server() -> None:
    result = called("status.py", "--port", str(free_ports()))
    assert result.returncode == 1
    assert "no server answers" in result.stderr
    assert result.stderr.count("\n") == 1


def test_predict_takes_files_and_folders(server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "deeper"
    folder.mkdir(parents=True)
    for golden in PACKAGED:
        shutil.copy(golden.path, folder)
    result = command("predict.py", str(CHELSEA), str(tmp_path / "pictures"), "--port", str(server.port))
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [Path(line[0]).name for line in lines] == ["chelsea.png", *sorted(g.path.name for g in PACKAGED)]
    assert lines[0][1:] == lines[1][1:]
    assert all(0 < float(line[2]) <= 1 for line in lines)


def test_predict_topk_and_json(server: Running) -> None:
    text = command("predict.py", str(CHELSEA), "--topk", "3", "--port", str(server.port))
    assert len(text.stdout.splitlines()) == 3
    answer = json.loads(command("predict.py", str(CHELSEA), "--topk", "3", "--json", "--url", server.url).stdout)
    assert answer["path"] == str(CHELSEA)
    assert len(answer["top"]) == 3


def test_predict_goes_on_after_a_bad_file(server: Running, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    missing = tmp_path / "missing.jpg"
    result = command("predict.py", str(broken), str(missing), str(CHELSEA), "--port", str(server.port))
    assert result.returncode == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(CHELSEA)]
    errors = result.stderr.splitlines()
    assert f"error: {broken}: 400: received 10 bytes that are no picture" in result.stderr
    assert f"error: {missing}: can't be read: No such file or directory" in errors
    assert errors[-1] == "error: 2 of 3 pictures got no label; the lines above say why"


def test_predict_without_a_server(tmp_path: Path) -> None:
    result = called("predict.py", str(CHELSEA), "--port", str(free_ports()))
    assert result.returncode == 1
    assert "no server answers" in result.stderr


def test_evaluate_agrees_with_the_server(server: Running, tmp_path: Path) -> None:
    for golden in PACKAGED:
        folder = tmp_path / "data" / ("Bengal" if golden.name == "chelsea" else "neither cat nor dog")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(golden.path, folder)
    reports = []
    for flags in ([], ["--url", server.url]):
        report = tmp_path / f"{len(flags)}.json"
        result = command("evaluate.py", str(tmp_path / "data"), "--json", str(report), *flags)
        assert result.returncode == 0, result.stderr
        reports.append(json.loads(report.read_text(encoding="utf-8")))
    here, there = reports
    precision = settle(read_model_folder(BUNDLED), Wanted())[0].precision
    assert [p["predicted"] for p in here["predictions"]] == [p["predicted"] for p in there["predictions"]]
    for a, b in zip(here["predictions"], there["predictions"]):
        # the server may compute in bfloat16
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4 if precision == "float32" else 0.03)
    assert here["total"]["pictures"] == len(PACKAGED)


def test_scaling_under_load_loses_no_request(server: Running) -> None:
    with load(server.predictions) as running:
        for workers in (3, 1, 2):
            result = command("scale.py", str(workers), "--port", str(server.port))
            assert result.returncode == 0, result.stderr
            assert result.stdout == f"{workers} workers READY (at least {workers}, at most {workers})\n"
            running.wait_for(5)
    assert set(running.answers) == {200}


def test_a_killed_worker_comes_back(server: Running) -> None:
    wait_for_workers(server, 2)
    management = Management(server.management)
    victim = management.status().workers[0].pid
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in {w.pid for w in management.status().workers})
    wait_for_workers(server, 2)
    assert requests.put(server.predictions, data=PICTURE, timeout=60).status_code == 200


def family(port: int) -> tuple[list[int], Path]:
    """The processes of the server on ``port`` and its temporary folder."""
    state = json.loads((RUN / str(port) / "state.json").read_text(encoding="utf-8"))
    java = psutil.Process(state["pid"])
    return [java.pid, *(p.pid for p in java.children(recursive=True))], Path(state["temporary"])


def test_stop_leaves_nothing_behind_and_only_stops_its_own(server: Running, model_store: Path) -> None:
    with serving(model_store, "--workers", "1") as second:
        pids, temporary = family(second.port)
        assert any(temporary.iterdir())
        assert len(pids) >= 2
        result = command("stop.py", "--port", str(second.port))
        assert result.returncode == 0
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert not temporary.exists()
        assert {p.name for p in (RUN / str(second.port)).iterdir()} == {"access_log.log", "output.log", "server.log"}
        again = command("stop.py", "--port", str(second.port))
        assert (again.returncode, again.stdout) == (0, f"no server of this project runs on port {second.port}\n")
    assert requests.put(server.predictions, data=PICTURE, timeout=60).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_foreground_stops_on_a_signal(model_store: Path, number: signal.Signals) -> None:
    with foreground(model_store) as (process, port):
        pids, temporary = family(port)
        assert requests.put(f"http://127.0.0.1:{port}/predictions/densenet", data=PICTURE, timeout=60).ok
        process.send_signal(number)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert output.endswith("stopped\n")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not temporary.exists()


@pytest.mark.parametrize("how", ["sigterm", "stop.py"])
def test_stopping_answers_what_is_under_way(model_store: Path, how: str) -> None:
    """Six clients without a pause at one worker: whatever had begun before the stop gets its answer."""
    with (
        foreground(model_store) as (process, port),
        sending(f"http://127.0.0.1:{port}/predictions/densenet", 6) as sent,
    ):
        wait_until(lambda: len(sent) >= 20)
        stopped = time.monotonic()
        if how == "sigterm":
            process.send_signal(signal.SIGTERM)
        else:
            result = command("stop.py", "--port", str(port))
            assert (result.returncode, result.stderr) == (0, "")
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    assert output.endswith("stopped\n") or how == "stop.py"
    assert {request.outcome for request in sent if request.begun < stopped} == {200}
    assert {request.outcome for request in sent if request.begun >= stopped} <= {200, "ConnectionError"}


def test_a_finished_archive_is_served_as_it_is(model_store: Path, tmp_path: Path) -> None:
    built = command("build_archive.py", "--weights", "bundled", "--model-store", str(model_store))
    assert built.returncode == 0, built.stderr
    mine, link = tmp_path / "mine.mar", tmp_path / "link.mar"
    shutil.copy(archive_path(model_store), mine)
    link.symlink_to(mine)  # which TorchServe itself wouldn't take
    with serving(tmp_path, "--workers", "1", weights=link, DENSENET_RUN=str(tmp_path / "run")) as running:
        assert f"using {mine}: densenet-pets, 46 classes" in running.output
        assert (tmp_path / "run" / str(running.port) / "state.json").is_file()
        assert requests.put(running.predictions, data=PICTURE, timeout=60).ok
        assert command("stop.py", "--port", str(running.port), DENSENET_RUN=str(tmp_path / "run")).returncode == 0
    refused = command("serve.py", "--precision", "float32", "--port", str(free_ports()), DENSENET_WEIGHTS=str(mine))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: --precision can't change the finished archive {mine}; give it to build_")


def test_foreground_ends_with_an_error_when_the_server_dies(model_store: Path) -> None:
    with foreground(model_store) as (process, port):
        pids, _ = family(port)
        os.kill(pids[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "error: TorchServe ended by itself" in errors


def test_a_worker_that_cannot_start_fails_serve_in_seconds(tmp_path: Path) -> None:
    """A card that contradicts the weights, packed behind the checks' back."""
    files = archive_inputs(read_model_folder(BUNDLED), read_model_folder(BUNDLED).card, {})
    config = yaml.safe_load(files[MODEL_CONFIG])
    config["handler"]["num_classes"] = 47
    files[MODEL_CONFIG] = yaml.safe_dump(config).encode()
    archive_path(tmp_path).write_bytes(build_archive(files))
    port, start = free_ports(), time.monotonic()
    running = start_server(tmp_path, java_home(), port)
    try:
        with pytest.raises(Exception, match=r"the worker can't start: .*46 labels for 47 classes"):
            wait_until_ready(running)
    finally:
        stop_server(running)
    assert time.monotonic() - start < 60
    assert running.process() is None


def test_a_batch_with_one_broken_picture_answers_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker that takes eight requests at once: seven get 200, the broken one 400."""
    talkative = tmp_path / "log4j2.xml"  # with TorchServe's line a batch
    talkative.write_text(re.sub(r"<RegexFilter.*/>", "", LOG_CONFIG.read_text(encoding="utf-8")), encoding="utf-8")
    monkeypatch.setattr("scripts.lib.server.LOG_CONFIG", talkative)
    files = archive_inputs(read_model_folder(BUNDLED), read_model_folder(BUNDLED).card, {})
    config = yaml.safe_load(files[MODEL_CONFIG])
    config |= {"batchSize": 8, "maxBatchDelay": 3000, "minWorkers": 1, "maxWorkers": 1}
    files[MODEL_CONFIG] = yaml.safe_dump(config).encode()
    archive_path(tmp_path).write_bytes(build_archive(files))
    running = start_server(tmp_path, java_home(), free_ports())
    try:
        wait_until_ready(running)
        bodies = [PICTURE] * 3 + [PICTURE[:5000]] + [PICTURE] * 4
        answers: dict[int, requests.Response] = {}

        def send(index: int) -> None:
            answers[index] = requests.put(f"{running.url}/predictions/densenet", data=bodies[index], timeout=60)

        threads = [threading.Thread(target=send, args=(i,)) for i in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log = (running.folder / "server.log").read_text(encoding="utf-8", errors="replace")
    finally:
        stop_server(running)
    assert [answers[i].status_code for i in range(8)] == [200, 200, 200, 400, 200, 200, 200, 200]
    assert answers[3].json()["type"] == "InvalidImage"
    assert len({answers[i].text for i in range(8) if i != 3}) == 1
    assert log.count("Backend received inference") == 1, "the eight requests weren't one batch"


def test_tokens_are_asked_for_when_switched_on(model_store: Path) -> None:
    with serving(model_store, "--workers", "1", "--token") as running:
        refused = requests.put(running.predictions, data=PICTURE, timeout=60)
        assert refused.status_code == 400
        assert refused.json()["type"] == "InvalidKeyException"
        keys = RUN / str(running.port) / "key_file.json"
        assert keys.stat().st_mode & 0o077 == 0 or keys.parent.stat().st_mode & 0o077 == 0
        token = json.loads(keys.read_text(encoding="utf-8"))["inference"]["key"]
        headers = {"Authorization": f"Bearer {token}"}
        assert requests.put(running.predictions, data=PICTURE, headers=headers, timeout=60).ok
        for arguments in (["predict.py", str(CHELSEA)], ["status.py"], ["scale.py", "1"]):
            result = command(*arguments, "--port", str(running.port))
            assert result.returncode == 0, result.stderr
        assert requests.get(f"{running.management}/models", timeout=60).status_code == 400
        metrics = requests.get(f"http://127.0.0.1:{running.port + 2}/metrics", timeout=60)
        assert metrics.ok, "docs/configuration.md says that no token protects them"


def test_management_for_others_needs_tokens() -> None:
    result = called("serve.py", "--weights", "bundled", "--management-host", "0.0.0.0")
    assert result.returncode == 1
    assert result.stderr.startswith("error: --management-host 0.0.0.0 would let everybody in that network control")


def test_the_archive_works_with_plain_torchserve(model_store: Path, tmp_path: Path) -> None:
    """The command line of the README, on free ports."""
    built = command("build_archive.py", "--weights", "bundled", "--model-store", str(model_store))
    assert built.returncode == 0, built.stderr
    port = free_ports()
    properties = read_properties(CONFIG / "config.properties")
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    config = tmp_path / "config.properties"
    config.write_text(re.sub(r"\b500([0-4])\b", lambda m: str(port + int(m[1])), text), encoding="utf-8")
    (tmp_path / "config").symlink_to(CONFIG)  # metrics_config is relative to the checkout
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "JAVA_HOME": str(java_home()), "TEMP": str(temporary), "TMPDIR": str(temporary)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    torchserve = [
        *("torchserve", "--start", "--model-store", str(model_store), "--models", "densenet=densenet.mar"),
        *("--ts-config", str(config)),
    ]
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(torchserve, cwd=tmp_path, env=environment, stdout=log, stderr=log, check=True)
    try:
        running = Running(port, model_store, "")
        deadline = time.monotonic() + 120
        while True:
            try:
                if Management(running.management).status().ready:
                    break
            except Exception:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text(errors="replace")[-2000:]
            time.sleep(0.2)
        assert requests.put(running.predictions, data=PICTURE, timeout=60).json()["label"]
        metrics = f"http://127.0.0.1:{port + 2}/metrics"
        series = 'densenet_stage_seconds_count{model_version="1.0",stage="inference"'
        wait_until(lambda: series in requests.get(metrics, timeout=60).text)  # workers report every 2 s
    finally:
        subprocess.run(["torchserve", "--stop", "--foreground"], cwd=tmp_path, env=environment, check=True)


def test_build_archive_is_reproducible_and_lazy(tmp_path: Path) -> None:
    stores = [tmp_path / "a", tmp_path / "b"]
    for store in stores:
        result = command("build_archive.py", "--weights", "bundled", "--model-store", str(store))
        assert result.returncode == 0, result.stderr
        assert ": built, densenet-pets, 46 classes" in result.stdout
    first, second = (archive_path(store) for store in stores)
    assert first.read_bytes() == second.read_bytes()
    os.utime(BUNDLED / CARD)
    before = first.stat().st_mtime_ns
    assert (
        ": up to date," in command("build_archive.py", "--weights", "bundled", "--model-store", str(stores[0])).stdout
    )
    assert first.stat().st_mtime_ns == before
    first.write_bytes(first.read_bytes()[:-1000])
    assert ": built," in command("build_archive.py", "--weights", "bundled", "--model-store", str(stores[0])).stdout
    assert first.read_bytes() == second.read_bytes()


def test_build_archive_refuses_what_does_not_fit(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUNDLED, model)
    labels = json.loads((model / LABELS).read_text(encoding="utf-8"))
    del labels["45"]
    (model / LABELS).write_bytes(json_bytes(labels))
    result = command("build_archive.py", "--weights", str(model), "--model-store", str(tmp_path / "store"))
    assert result.returncode == 1
    assert "the labels don't fit the card: 45 labels for 46 classes, missing 45" in result.stderr
    assert not archive_path(tmp_path / "store").exists()
