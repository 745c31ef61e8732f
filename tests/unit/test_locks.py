"""Lock files: those of the repository, and how they are made, by a real uv from tiny packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import lock
from scripts.lib.console import CommandError
from scripts.lib.locks import SOURCES, TORCH_LOCK, lock_of, make_locks, pins
from scripts.lib.paths import ROOT
from tests.support.machine.wheels import write_wheel

LOCKS = [*map(lock_of, SOURCES), TORCH_LOCK]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def by_hand(source: str) -> set[tuple[str, str]]:
    """Name and version of each line of a requirements file, and of those that it includes."""
    text = read(source)
    lines = re.findall(r"^([A-Za-z0-9-]+)(?:\[\S+\])?==([^\s;]+)", text, re.MULTILINE)
    found = {(name.lower(), version) for name, version in lines}
    return found.union(*(by_hand(name) for name in re.findall(r"^-r (\S+)", text, re.MULTILINE)))


@pytest.mark.parametrize("source", SOURCES)
def test_a_lock_holds_what_is_pinned_by_hand_and_no_other_version_of_it(source: str) -> None:
    pinned = by_hand(source)
    names = {name for name, version in pinned}
    both = {**pins(read(TORCH_LOCK)), **pins(read(lock_of(source)))}
    assert {(name, version) for name in names for version in both.get(name, ())} == pinned, "run scripts/lock.py"


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_is_a_pin_with_hashes_and_names_no_place(name: str) -> None:
    text = read(name)
    lines = [line for line in text.splitlines() if not re.match(r"\s*#", line)]
    blocks = re.split(r"\n(?=\S)", "\n".join(lines))
    assert len(blocks) > 20
    requirement = r"[a-z0-9-]+(\[[a-z,]+\])?==\S+( ; [^\\]+)? \\"
    hashes = r"(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+"
    assert [block for block in blocks if not re.fullmatch(requirement + hashes, block)] == []
    assert "://" not in text


def test_what_is_tested_is_what_runs() -> None:
    tested = pins(read("requirements-dev.lock"))
    for name in ("requirements.lock", "requirements-int8.lock"):
        assert {package: tested.get(package) for package in pins(read(name))} == pins(read(name))


def test_locks_lack_nothing_that_their_packages_need() -> None:
    """The set-up has pip look for nothing beyond them."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.stdout == "No broken requirements found.\n"


def test_torch_and_its_cuda_stand_apart() -> None:
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= set(pins(read(TORCH_LOCK)))
    for name in map(lock_of, SOURCES):
        assert not set(pins(read(name))) & set(pins(read(TORCH_LOCK)))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Requirements files that lead to packages in ``wheels``."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "torch", "1.0", {}, 'nvidia_cuda; sys_platform == "linux"')
    write_wheel(wheels, "nvidia_cuda", "3.0", {})
    write_wheel(wheels, "server", "1.0", {}, "helper")
    write_wheel(wheels, "helper", "1.0", {})
    write_wheel(wheels, "tester", "1.0", {}, "helper<2", "pip")
    write_wheel(wheels, "pip", "1.0", {})
    write_wheel(wheels, "nvidia_other", "1.0", {})
    for source in SOURCES:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).write_text("server==1.0\n")
    (tmp_path / "requirements-int8.txt").write_text("nvidia-other==1.0\ntorch==1.0\n")
    (tmp_path / "requirements.txt").write_text("torch==1.0\nserver==1.0\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\ntester==1.0\n")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return lock.main(lock.build_parser().parse_args(arguments))


def test_locks_are_split_and_whole(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helper = write_wheel(checkout / "wheels", "helper", "1.0", {})
    server = write_wheel(checkout / "wheels", "server", "1.0", {}, "helper")
    assert run() == 0
    assert "requirements-torch.lock: written\n" in capsys.readouterr().out
    assert (checkout / "requirements.lock").read_text() == (
        "# All that requirements.txt leads to, except what requirements-torch.lock holds.\n"
        "# Made by `python3 scripts/lock.py`; don't edit.\n"
        f"helper==1.0 \\\n    --hash=sha256:{helper}\n    # via server\n"
        f"server==1.0 \\\n    --hash=sha256:{server}\n    # via -r requirements.txt\n"
    )
    assert pins((checkout / TORCH_LOCK).read_text()) == {"nvidia-cuda": ["3.0"], "torch": ["1.0"]}
    assert "nvidia-cuda==3.0 ; sys_platform == 'linux'" in (checkout / TORCH_LOCK).read_text()
    assert pins((checkout / "requirements-int8.lock").read_text()) == {"nvidia-other": ["1.0"]}
    assert pins((checkout / "requirements-dev.lock").read_text()) == {
        "helper": ["1.0"],
        "server": ["1.0"],
        "tester": ["1.0"],
    }
    assert run() == 0
    assert "written" not in capsys.readouterr().out


def test_what_is_locked_stays_until_it_is_upgraded(checkout: Path) -> None:
    assert run() == 0
    write_wheel(checkout / "wheels", "helper", "1.1", {})
    write_wheel(checkout / "wheels", "helper", "2.0", {})
    assert run() == 0
    assert pins((checkout / "requirements.lock").read_text())["helper"] == ["1.0"]
    assert run("--upgrade") == 0
    # not 2.0, which what tests needs can't be tested with
    assert pins((checkout / "requirements.lock").read_text())["helper"] == ["1.1"]


def test_pins_that_do_not_fit_are_told_of(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text("server==9.0\n")
    with pytest.raises(
        CommandError, match=r"(?s)uv can't lock requirements-dev\.txt: .*server==9\.0.*; change its pins"
    ):
        make_locks(checkout)
    assert not (checkout / "requirements.lock").exists()


def test_without_uv_there_is_advice(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(CommandError, match=r"uv isn't here; it comes with requirements-dev\.lock"):
        make_locks(checkout)


def test_what_npm_installs_has_a_hash_and_the_version_that_is_pinned() -> None:
    folder = ROOT / "tests" / "support" / "linters"
    pinned = json.loads((folder / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    packages = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in pinned} == pinned
    assert [name for name, facts in packages.items() if name and not facts["integrity"].startswith("sha512-")] == []
