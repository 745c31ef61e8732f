"""Machines that nobody here chose: without the programs of a larger system, under other paths, in other languages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.archive import archive_path
from scripts.lib.management import Management
from scripts.lib.paths import ROOT
from tests.support.machine.ports import free_ports
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import COMMAND_TIMEOUT_S, command, serving
from tests.support.servers.versions import NEW_LABEL, write_golden, write_new_version

pytestmark = pytest.mark.slow


def test_without_any_program_of_the_system(tmp_path: Path) -> None:
    """TorchServe runs ``kill`` to end a worker, which Debian's minimal system lacks."""
    empty = tmp_path / "empty"
    empty.mkdir()
    store = tmp_path / "store"
    write_new_version(store)
    with serving(store, "--workers", "2", PATH=str(empty)) as server:
        scaled = command("scale.py", "1", "--port", str(server.port))
        assert scaled.returncode == 0, scaled.stderr
        label = command("predict.py", str(CHELSEA), "--url", server.url).stdout.split("\t")[1]
        golden = write_golden(tmp_path, NEW_LABEL + label)
        for arguments in ((str(archive_path(store, "2.0")), "--golden", golden), ("--rollback",), ("--remove", "2.0")):
            deployed = command("deploy.py", *arguments, "--port", str(server.port))
            assert deployed.returncode == 0, deployed.stderr
        assert [model.ready for model in Management(server.management).versions()] == [1]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no LANG")
def test_a_path_of_any_letters(tmp_path: Path) -> None:
    """Checkout, Python and all: Java reads its settings as ISO-8859-1, and file names as the locale says."""
    checkout = tmp_path / "jürgen" / "ユーザー, 2"
    kept = ("config", "handler", "scripts", "docs/openapi.yaml", "model_store/bundled", "index_to_name.json")
    for name in kept:
        source, target = ROOT / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (checkout / ".venv").symlink_to(sys.prefix)
    python, port = checkout / ".venv" / "bin" / "python", str(free_ports())

    def run(script: str, *arguments: str, **language: str) -> str:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "DENSENET"))}
        done = subprocess.run(
            [python, checkout / "scripts" / script, *arguments],
            env={**own, "DENSENET_NO_VENV": "1", **language},
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    picture = checkout / "猫.png"
    shutil.copy(CHELSEA, picture)
    for language in ({"LANG": "C"}, {"LC_ALL": "POSIX"}):
        run("serve.py", "--detach", "--weights", "bundled", "--workers", "1", "--port", port, **language)
        try:
            answer = run("predict.py", str(picture), "--url", f"http://127.0.0.1:{port}", LANG="C.UTF-8")
            assert answer.startswith(f"{picture}\t"), answer
        finally:
            run("stop.py", "--port", port, **language)
        logs = checkout / ".run" / port
        assert {path.name for path in logs.iterdir()} >= {"server.log", "access_log.log", "output.log"}
