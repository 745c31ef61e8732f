"""What can be said about a server without starting one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from scripts.lib import server as module
from scripts.lib.console import CommandError
from scripts.lib.paths import ROOT
from scripts.lib.server import (
    STOPPING,
    Server,
    check_start,
    clean_up,
    connect,
    drained,
    find_server,
    java_properties,
    read_properties,
    read_token,
    server_environment,
    start_server,
    started,
    stop_server,
    was_stopped,
    worker_error,
)
from tests.support.machine.ports import free_ports


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``.run`` folder of the test's own."""
    monkeypatch.setattr(module, "RUN", tmp_path / "run")
    return tmp_path / "run"


def remember(server: Server) -> None:
    """Write the state as ``start_server`` does."""
    server.folder.mkdir(parents=True)
    (server.folder / "state.json").write_text(json.dumps(asdict(server)), encoding="utf-8")


def myself(port: int, **changes: object) -> Server:
    """This test process as a server."""
    values = {
        **{"port": port, "pid": os.getpid(), "created": started(psutil.Process()), "host": "127.0.0.1"},
        **{"management_host": "127.0.0.1", "token": False, "workers": 1, "temporary": "/nowhere"},
    }
    return Server(**{**values, **changes})  # type: ignore[arg-type]


def test_a_server_is_found_while_its_process_lives() -> None:
    assert find_server(7000) is None
    remember(myself(7000))
    found = find_server(7000)
    assert found == myself(7000)
    assert found.url == "http://127.0.0.1:7000"
    assert found.metrics_url == "http://127.0.0.1:7002"
    assert found.management.url == "http://127.0.0.1:7001"


def test_another_process_with_the_same_number_is_not_the_server() -> None:
    remember(myself(7000, created=started(psutil.Process()) - 1000))
    assert find_server(7000) is None
    (myself(7000).folder / "state.json").write_text("{", encoding="utf-8")
    assert find_server(7000) is None


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:7000"), ("::", "http://[::1]:7000"), ("10.0.0.7", "http://10.0.0.7:7000")],
)
def test_a_wildcard_address_is_reached_over_loopback(host: str, url: str) -> None:
    assert myself(7000, host=host).url == url


def test_tokens_of_a_server_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    server = myself(7000, token=True)
    remember(server)
    with pytest.raises(CommandError, match=r"can't read the management token from .*key_file.json"):
        connect(7000)
    keys = {"management": {"key": "m"}, "inference": {"key": "i"}}
    (server.folder / "key_file.json").write_text(json.dumps(keys), encoding="utf-8")
    assert connect(7000).headers == {"Authorization": "Bearer m"}
    assert read_token(server.folder, "inference") == "i"
    monkeypatch.setenv("DENSENET_TOKEN", "given")
    assert connect(7000).headers == {"Authorization": "Bearer given"}
    assert connect(7000, "http://far:1/").url == "http://far:1"


def test_a_token_that_was_not_written_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    server = myself(7000, token=True)
    remember(server)
    keys = {"API": {"key": "a"}, "inference": {"key": "i"}}
    (server.folder / "key_file.json").write_text(json.dumps(keys), encoding="utf-8")
    monkeypatch.setattr("scripts.lib.management.Management.rotate_token", lambda self, kind: None)
    with pytest.raises(CommandError, match=r"wrote no new inference token to .*key_file\.json; is the disk full\?"):
        server.rotate_token("inference")


def test_a_second_start_is_refused() -> None:
    remember(myself(7000))
    with pytest.raises(CommandError, match="a server of this project runs on port 7000 already; stop it with"):
        start_server(Path("store"), Path("java"), 7000)


def test_a_port_in_use_is_named() -> None:
    port = free_ports()
    check_start(port, "127.0.0.1", "127.0.0.1")
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", port + 2))
        owner.listen()
        with pytest.raises(CommandError, match=rf"port {port + 2} \(metrics\) can't be used: .*process {os.getpid()}"):
            check_start(port, "127.0.0.1", "127.0.0.1")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CommandError, match=r"\(inference\) can't be used: Cannot assign requested address"):
        check_start(free_ports(), "192.0.2.1", "127.0.0.1")


def test_a_java_that_does_not_start_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"TorchServe didn't start .*java not found"):
        start_server(tmp_path, tmp_path / "no-java", free_ports())
    assert not list(Path(tempfile.gettempdir()).glob(f"densenet-*/{tmp_path.name}"))


def test_stopping_ends_the_whole_family_and_removes_its_traces(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    with subprocess.Popen([sys.executable, "-c", child]) as process:
        parent = psutil.Process(process.pid)
        server = myself(7000, pid=process.pid, created=started(parent), temporary=str(temporary))
        remember(server)
        (server.folder / "server.log").write_text("kept", encoding="utf-8")
        while not parent.children():
            pass
        family = [parent, *parent.children()]
        stop_server(server, timeout=1)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert not temporary.exists()
    assert [p.name for p in server.folder.iterdir()] == ["server.log"]
    clean_up(7000)  # nothing left: no error


def test_a_stopped_server_did_not_end_by_itself() -> None:
    server = myself(7000, created=started(psutil.Process()) - 1000)  # dead
    remember(server)
    assert not was_stopped(server)
    (server.folder / STOPPING).touch()
    assert was_stopped(server), "it is being stopped"
    clean_up(7000)
    assert was_stopped(server), "it is stopped"
    assert list(server.folder.iterdir()) == []


def test_a_server_that_cannot_be_drained_is_stopped_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody is connected, but the management API doesn't answer."""
    port = free_ports()
    server = myself(port)
    monkeypatch.setattr(module, "UPLOAD_GRACE", 0)
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with drained(server, psutil.Process()):
            assert capsys.readouterr().err == "", "nobody is connected"
        client.connect(("127.0.0.1", port))
        with listener.accept()[0], drained(server, psutil.Process()):
            assert capsys.readouterr().err.startswith("warning: requests may be lost: no server answers at ")


def test_the_workers_modules_come_from_the_archive_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("TS_CONFIG_FILE", "/elsewhere")
    environment = server_environment(Path("/java"), tmp_path, tmp_path / "t")
    assert "PYTHONPATH" not in environment and "TS_CONFIG_FILE" not in environment
    assert environment["JAVA_HOME"] == "/java"
    assert {environment[name] for name in ("TMPDIR", "TEMP", "TMP")} == {str(tmp_path / "t")}


def test_secrets_stay_away_from_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = ("DENSENET_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HTTPS_PROXY", "PGPASSWORD", "SSH_AUTH_SOCK")
    needed = ("HOME", "JAVA_TOOL_OPTIONS", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "DENSENET_LOG_SIZE", "MKL_NUM_THREADS")
    for name in (*secrets, *needed):
        monkeypatch.setenv(name, "value")
    environment = server_environment(Path("/java"), tmp_path, tmp_path / "t")
    assert set(secrets) & set(environment) == set()
    assert {environment[name] for name in needed} == {"value"}


def test_what_a_dead_server_left_is_gone_at_the_next_start(tmp_path: Path) -> None:
    """Its temporary folder; its logs, which may say why it died, stay for one more start."""
    port, temporary = free_ports(), tmp_path / "densenet-left"
    temporary.mkdir()
    dead = myself(port, created=started(psutil.Process()) - 1000, temporary=str(temporary))
    remember(dead)
    (dead.folder / "server.log").write_text("out of memory", encoding="utf-8")
    (dead.folder / "key_file.json").write_text("{}", encoding="utf-8")
    for _ in range(2):  # the second has less to move
        with pytest.raises(CommandError, match="TorchServe didn't start"):
            start_server(tmp_path, tmp_path / "no-java", port)
        if _ == 0:
            previous = dead.folder.with_name(f"{port}.previous")
            assert [(path.name, path.read_text(encoding="utf-8")) for path in previous.iterdir()] == [
                ("server.log", "out of memory")
            ]
    assert not temporary.exists()
    assert {path.name for path in previous.iterdir()} == {"output.log"}


def test_a_clean_up_leaves_the_next_server_alone() -> None:
    """Between the end of one and its clean-up another may have been started."""
    remember(myself(7000))
    clean_up(7000)
    assert find_server(7000) == myself(7000)


def test_java_reads_the_settings_that_were_written() -> None:
    """``Properties.load`` takes ISO-8859-1, and a backslash for an escape."""
    assert java_properties({"a": "plain=1 x", "b": "/jürgen/ユ😀", "c": "C:\\x"}) == (
        "a=plain=1 x\nb=/j\\u00fcrgen/\\u30e6\\ud83d\\ude00\nc=C:\\\\x\n"
    )


def test_properties_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text("# a=1\n\nb = 2\nvmargs=-Xa=1 -Xb\n", encoding="utf-8")
    assert read_properties(path) == {"b": "2", "vmargs": "-Xa=1 -Xb"}


PREFIX = "2026-01-01T00:00:00,000 [INFO ] W-9000-densenet_1.0-stdout MODEL_LOG - "


def test_the_workers_own_error_is_found_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert worker_error(log) == ""
    log.write_text(f"{PREFIX}all is well\n", encoding="utf-8")
    assert worker_error(log) == ""
    traceback = ["Backend worker process died.", "Traceback (most recent call last):", '  File "x.py"', "    do()"]
    lines = "".join(f"{PREFIX}{line}\n" for line in [*traceback, "handler.card.CardError: the card is wrong"])
    log.write_text(lines, encoding="utf-8")
    assert worker_error(log) == "handler.card.CardError: the card is wrong"
    log.write_text(f"{PREFIX}Backend worker process died.\n", encoding="utf-8")
    os.utime(log, (1, 1))
    assert worker_error(log) == "the worker died without saying why"


def test_a_health_check_is_cheap() -> None:
    """``status.py`` runs every few seconds: without the packages that take seconds to load."""
    code = "import sys, scripts.status, scripts.lib.server; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
