"""predict.py over many pictures: while the server restarts, when it is interrupted, killed, and gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.lib.paths import ROOT
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA, PACKAGED
from tests.support.servers.running import Running, called, command, serving

PICTURES = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred pictures."""
    top = tmp_path_factory.mktemp("many")
    for number in range(PICTURES):
        path = top / f"{number // 100}" / f"{number:04}{PACKAGED[number % 3].path.suffix}"
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(PACKAGED[number % 3].path)
    return top


@contextmanager
def predicting(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``predict.py`` in the background; ended with the block."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "predict.py"), *arguments],
        env={**os.environ, "DENSENET_NO_VENV": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_lines(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until the file has so many lines."""

    def written() -> bool:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return True
        assert process.poll() is None, process.communicate()
        return False

    wait_until(written, 120, pause=0.02)


@pytest.mark.slow
def test_a_batch_outlasts_a_restart_and_a_kill_and_an_interruption(
    model_store: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "predictions.jsonl"
    with serving(model_store, "--workers", "1") as server:
        port = ("--port", str(server.port))
        arguments = (str(folder), *port, "--output", str(output))
        with predicting(*arguments) as process:
            wait_for_lines(output, 40, process)
            assert command("stop.py", *port).returncode == 0
            held = output.read_bytes().count(b"\n")
            flags = ("--detach", "--weights", "bundled", "--model-store", str(model_store), "--workers", "1")
            with ThreadPoolExecutor() as pool:
                again = pool.submit(command, "serve.py", *flags, *port)
                wait_for_lines(output, held + 30, process)
                process.kill()
                assert again.result().returncode == 0
        with output.open("ab") as file:
            file.write(b'{"path": "half a li')
        with predicting(*arguments, "--resume") as process:
            wait_for_lines(output, output.read_bytes().count(b"\n") + 30, process)
            process.send_signal(signal.SIGINT)
            said, complaints = process.communicate(timeout=60)
            assert process.returncode == 130, complaints
        assert "pictures already; going on with the others" in said
        held = output.read_bytes().count(b"\n")
        hint = f"{output} holds {held} pictures; the same command with --resume goes on from there"
        assert complaints.splitlines()[-2:] == [hint, "interrupted"]
        result = command("predict.py", *arguments, "--resume", "--sheet", str(tmp_path / "sheet.html"))
        assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["path"] for row in rows] == sorted(str(path) for path in folder.rglob("*.*"))
    assert len(rows) == PICTURES
    assert not any("error" in row for row in rows)
    for kind in range(3):  # each picture has its own label, wherever it was asked for
        assert len({row["label"] for row in rows if int(Path(row["path"]).stem) % 3 == kind}) == 1
    assert (tmp_path / "sheet.html").read_text(encoding="utf-8").count("<li><a href=") >= PICTURES


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_batch(model_store: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    with serving(model_store, "--workers", "1") as server:
        arguments = (str(folder), "--port", str(server.port), "--output", str(output), "--patience", "1")
        with predicting(*arguments) as process:
            wait_for_lines(output, 10, process)
            assert command("stop.py", "--port", str(server.port)).returncode == 0
            _, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    hint, error = complaints.splitlines()[-2:]
    pictures = output.read_bytes().count(b"\n") - 1
    assert hint == f"{output} holds {pictures} pictures; the same command with --resume goes on from there"
    assert error.startswith("error: ")
    assert 10 <= pictures < PICTURES


def test_pictures_from_everywhere_in_every_form(server: Running, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"label,path\ncat,{CHELSEA}\n", encoding="utf-8")
    (tmp_path / "x.png").symlink_to(CHELSEA)
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "predict.py"), str(tmp_path / "list.csv"), "-", str(tmp_path)),
            *(str(tmp_path / "*.png"), "--csv", "--topk", "2", "--port", str(server.port)),
        ],
        env={**os.environ, "DENSENET_NO_VENV": "1"},
        input=f"{CHELSEA}\nmissing.jpg\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    rows = list(csv.DictReader(result.stdout.splitlines()))
    links = [str(tmp_path / "x.png")] * 2
    assert [r["path"] for r in rows] == [str(CHELSEA)] * 4 + ["missing.jpg"] + links * 2
    assert [r["rank"] for r in rows] == ["1", "2", "1", "2", "", "1", "2", "1", "2"]
    assert rows[4]["error"] == "can't be read: No such file or directory"
    assert "error: missing.jpg: can't be read: No such file or directory\n" in result.stderr
    assert result.stderr.endswith("error: 1 of 5 pictures got no label; the lines above say why\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x.jpg", "--resume"], 2, "--resume goes on with a file; name it with --output"),
        (["x.jpg", "--json", "--csv"], 2, "not allowed with argument"),
        (["x.jpg", "--topk", "two"], 2, "argument --topk: 'two' is no whole number, expected at least 1"),
        (["x.jpg", "--port", "http"], 2, "argument --port: 'http' is no whole number, expected 1024 to 65531"),
        ([], 2, "the following arguments are required: PICTURE"),
        (
            ["x.jpg", "--url", "localhost:5000"],
            1,
            "received 'localhost:5000' as the server's address; expected one like",
        ),
        (["no*thing"], 1, "error: the pattern no*thing matches no picture"),
    ],
    ids=["resume-without-file", "two-formats", "topk", "port", "nothing", "url", "pattern"],
)
def test_wrong_use(arguments: list[str], code: int, message: str) -> None:
    result = called("predict.py", *arguments)
    assert result.returncode == code
    assert message in result.stderr
