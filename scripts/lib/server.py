"""TorchServe as a process: start it from generated settings, watch it, stop it, leave nothing behind.

Each server has a folder ``.run/<port>/`` with its state, settings, logs and tokens, readable by its
owner alone, and a temporary folder for TorchServe's unpacked archive and sockets, whose path must
stay short (a socket's path holds about 100 characters). Stopping removes all but the logs, which the
next start moves to ``.run/<port>.previous/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import requests

from handler.hold import HEADER, PREFIX
from scripts.lib.console import CommandError, tell, warn
from scripts.lib.frontend import AGENT
from scripts.lib.locking import locked
from scripts.lib.management import POLL_SECONDS, Management, ModelStatus
from scripts.lib.model_folder import json_bytes, write_atomically
from scripts.lib.paths import CONFIG, MODEL_NAME, RUN

LOOPBACK = "127.0.0.1"
LOG_CONFIG = CONFIG / "log4j2.xml"
METRICS_CONFIG = CONFIG / "metrics.yaml"
LOG = "server.log"
"""What TorchServe and its workers log; config/log4j2.xml bounds it."""
OUTPUT = "output.log"
"""What Java itself prints: why it doesn't start, or ends."""
TOKENS = "key_file.json"
"""Where TorchServe writes its tokens."""
ARCHIVE = f"{MODEL_NAME}.mar"
"""What ``build_archive.py`` writes."""
WORKERS_PER_THREAD = 8
"""Workers that one of TorchServe's network threads keeps busy, with room to spare."""
STOP_TIMEOUT = 5
"""Seconds that TorchServe and its workers get to end, before they are killed: they have nothing left to do."""
DRAIN_TIMEOUT = 75
"""Seconds that requests under way get to be answered before that."""
UPLOAD_GRACE = 1.0
"""Seconds that pictures get to arrive whose requests have begun."""
START_TIMEOUT = 180
HOLD_TIMEOUT = 60
RELEASE_TIMEOUT = 1
"""Seconds that the workers get to answer what held them."""
STOPPING = "stopping"
"""File in a server's folder: it is being stopped, and didn't end by itself."""
_DEATH = "Backend worker process died."
PASSED_ON = re.compile(
    # where a user and the system keep things; matplotlib's list of fonts is in the project's cache
    r"MPLCONFIGDIR|HOME|USER|LOGNAME|TZ|LD_(LIBRARY_PATH|PRELOAD)|DYLD_\w+"
    # Windows doesn't work without
    r"|SYSTEM(ROOT|DRIVE)|WINDIR|COMSPEC|PATHEXT|USERPROFILE|(LOCAL)?APPDATA|PROGRAMDATA"
    r"|NUMBER_OF_PROCESSORS|PROCESSOR_\w+"
    # Java, Python, and the libraries that compute
    r"|(_JAVA|JDK_JAVA|JAVA_TOOL)_OPTIONS|PYTHON(?!PATH$)\w+|MALLOC_\w+|GLIBC_TUNABLES"
    r"|(OMP|GOMP|KMP|MKL|OPENBLAS|ATEN|DNNL|ONEDNN|OV|OPENVINO|TORCH|TORCHINDUCTOR|PYTORCH|TRITON)_\w+"
    r"|(CUDA|CUBLAS|CUDNN|NVIDIA|NCCL)_\w+"
    # config/log4j2.xml
    r"|DENSENET_LOG_SIZE",
    re.IGNORECASE,
)
"""Environment variables that TorchServe and its workers get of a command's. A worker decodes what strangers send: what
other variables hold, such as tokens, keys and passwords, stays away from it."""
PROGRAMS = Path(__file__).with_name("programs")
"""Programs that TorchServe runs, for systems that lack them."""


@dataclass(frozen=True)
class Server:
    """A server that ``serve.py`` started; what ``.run/<port>/state.json`` holds."""

    port: int
    pid: int
    created: float
    host: str
    management_host: str
    token: bool
    workers: int
    temporary: str
    model: dict[str, str] = field(default_factory=dict)
    metrics_host: str = LOOPBACK
    previous: str = ""
    """The version that was the default before the present one; "" if none was deployed (``deploy.py``)."""
    model_store: str = ""

    @property
    def folder(self) -> Path:
        """Where its state, settings and logs are."""
        return run_folder(self.port)

    @property
    def url(self) -> str:
        """Its inference address, as one reaches it from this machine."""
        return f"http://{_reachable(self.host)}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Its metrics address, as one reaches it from this machine."""
        return f"http://{_reachable(self.metrics_host)}:{self.port + 2}"

    @property
    def management(self) -> Management:
        """A client of its management API, with its token where it asks for one."""
        return self._management("management")

    def rotate_token(self, kind: str) -> None:
        """Have TorchServe replace its token ``management`` or ``inference``; the old one is refused from now on.

        Raises:
            NotRunning: it doesn't answer.
            CommandError: it answers with an error, wrote no new token, or this user can't read its tokens.
        """
        old = read_token(self.folder, kind)
        self._management("API").rotate_token(kind)
        if read_token(self.folder, kind) == old:  # TorchServe's 200 comes all the same
            raise CommandError(f"TorchServe wrote no new {kind} token to {self.folder / TOKENS}; is the disk full?")

    def _management(self, token: str) -> Management:
        url = f"http://{_reachable(self.management_host)}:{self.port + 1}"
        return Management(url, read_token(self.folder, token) if self.token else None)

    def process(self) -> psutil.Process | None:
        """Its Java process, None if it is gone."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(started(process) - self.created) < 2 and process.status() != psutil.STATUS_ZOMBIE
            return process if alive else None
        except (psutil.Error, OSError):
            return None


def started(process: psutil.Process) -> float:
    """When a process started, in seconds: on Linux since the boot, so that setting the clock changes nothing."""
    if not sys.platform.startswith("linux"):
        return process.create_time()
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime, see proc(5)


def run_folder(port: int) -> Path:
    """The folder of the server on an inference port."""
    return RUN / str(port)


def find_server(port: int) -> Server | None:
    """The server that ``serve.py`` started on ``port``; None if there is none or it is dead."""
    try:
        state = json.loads((run_folder(port) / "state.json").read_text(encoding="utf-8"))
        server = Server(**state)
    except (OSError, ValueError, TypeError):
        return None
    return server if server.process() else None


def connect(port: int, url: str | None = None) -> Management:
    """A client of the management API of the server on ``port``, or at ``url``.

    The token is that of a server that ``serve.py`` started here, or the variable ``DENSENET_TOKEN``.
    """
    token = os.environ.get("DENSENET_TOKEN") or None
    server = None if url else find_server(port)
    if server and not token:
        return server.management
    return Management(url or f"http://{LOOPBACK}:{port + 1}", token)


def inference_token(port: int) -> str | None:
    """The inference token: of the variable ``DENSENET_TOKEN``, or of the server that runs on ``port`` here."""
    if os.environ.get("DENSENET_TOKEN"):
        return os.environ["DENSENET_TOKEN"]
    server = find_server(port)
    return read_token(server.folder, "inference") if server and server.token else None


def read_token(folder: Path, kind: str) -> str:
    """A token that TorchServe wrote for the server in ``folder``; kind ``management``, ``inference`` or ``API``.

    Raises:
        CommandError: the file isn't there or can't be read by this user.
    """
    path = folder / TOKENS
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[kind]["key"])
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(f"can't read the {kind} token from {path} ({type(error).__name__})") from None


def read_properties(path: Path) -> dict[str, str]:
    """The keys and values of a Java properties file (of the simple form that TorchServe reads)."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def java_properties(values: Mapping[str, str]) -> str:
    """A Java properties file, which Java reads as ISO-8859-1 with escapes (``Properties.load``): in ASCII."""

    def escaped(value: str) -> str:
        units = value.replace("\\", "\\\\").encode("utf-16-be")
        numbers = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
        return "".join(chr(n) if 32 <= n < 127 else f"\\u{n:04x}" for n in numbers)

    return "".join(f"{key}={escaped(value)}\n" for key, value in values.items())


def server_properties(
    port: int,
    host: str,
    management_host: str,
    workers: int,
    token: bool,
    metrics_host: str = LOOPBACK,
    cors_origin: str | None = None,
) -> dict[str, str]:
    """``config/config.properties`` with what ``serve.py``'s flags replace."""
    cors = {
        "cors_allowed_origin": cors_origin,
        # no PUT or DELETE: TorchServe takes the same for its management
        "cors_allowed_methods": "GET, POST",
        "cors_allowed_headers": "Accept, Content-Type",
    }
    return {
        **read_properties(CONFIG / "config.properties"),
        "inference_address": f"http://{_bracket(host)}:{port}",
        "management_address": f"http://{_bracket(management_host)}:{port + 1}",
        "metrics_address": f"http://{_bracket(metrics_host)}:{port + 2}",
        "grpc_inference_port": str(port + 3),
        "grpc_management_port": str(port + 4),
        "default_workers_per_model": str(workers),
        "number_of_netty_threads": str(network_threads(workers)),
        "netty_client_threads": str(network_threads(workers)),
        "disable_token_authorization": "false" if token else "true",
        "metrics_config": METRICS_CONFIG.as_posix(),
        **({name: value for name, value in cors.items() if value} if cors_origin else {}),
    }


def network_threads(workers: int) -> int:
    """Threads with which TorchServe reads from clients and workers."""
    return 1 + workers // WORKERS_PER_THREAD


def check_start(port: int, host: str, management_host: str, metrics_host: str = LOOPBACK) -> None:
    """Make sure that a server can be started: none runs on ``port``, and the five ports from it on are free.

    Raises:
        CommandError: a server of this project runs there; or a port is in use: names it and,
            where it can be found, its owner.
    """
    if find_server(port):
        raise CommandError(
            f"a server of this project runs on port {port} already; stop it with: "
            f"python3 scripts/stop.py --port {port}, or choose another --port"
        )
    names = ("inference", "management", "metrics", "gRPC inference", "gRPC management")
    for offset, name in enumerate(names):
        number = port + offset
        address = {0: host, 1: management_host, 2: metrics_host}.get(offset, LOOPBACK)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name == "posix":  # a port in TIME_WAIT is free for a server
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, number))
            except OSError as error:
                owner = _port_owner(number)
                raise CommandError(
                    f"port {number} ({name}) can't be used: {owner or error.strerror}; "
                    "stop that program, or choose other ports with --port"
                ) from None


def _port_owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid:
                    return f"{psutil.Process(connection.pid).name()} (process {connection.pid}) listens there"
                return "a program of another user listens there"
    except psutil.Error:
        pass
    return ""


def start_server(
    model_store: Path,
    java_home: Path,
    port: int,
    host: str = LOOPBACK,
    management_host: str = LOOPBACK,
    workers: int = 1,
    token: bool = False,
    model: Mapping[str, str] | None = None,
    *,
    metrics_host: str = LOOPBACK,
    archive: str = ARCHIVE,
    cors_origin: str | None = None,
) -> Server:
    """Start TorchServe on ``archive`` in ``model_store``; returns at once, see :func:`wait_until_ready`.

    Raises:
        CommandError: a server runs there already, a port is in use, or Java doesn't start.
    """
    folder = run_folder(port)
    with _locked(port):
        check_start(port, host, management_host, metrics_host)
        _remove_traces(port)
        _put_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)  # it exists where it can't be moved
        folder.chmod(0o700)
        properties = server_properties(port, host, management_host, workers, token, metrics_host, cors_origin)
        temporary = Path(tempfile.mkdtemp(prefix="densenet-"))
        process = None
        try:
            arguments = ["--model-store", str(model_store.resolve()), "--log-config", str(LOG_CONFIG)]
            environment = server_environment(java_home, folder, temporary)
            process, code = launch(folder, temporary, properties, arguments, environment, archive)
            if process is None:
                raise CommandError(
                    f"TorchServe didn't start (exit code {code}): {last_line(folder / OUTPUT)}; "
                    f"its output is in {folder / OUTPUT}"
                )
            server = Server(
                port,
                process.pid,
                started(process),
                host,
                management_host,
                token,
                workers,
                str(temporary),
                dict(model) if model else {},
                metrics_host,
                model_store=str(model_store.resolve()),
            )
            remember(server)
        except BaseException:  # a Ctrl-C, too: without the state nothing else finds them
            if process is not None:
                end_family(process, timeout=0)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return server


@contextmanager
def _locked(port: int) -> Iterator[None]:
    """Keep other commands away from the state of the server on ``port``."""
    say_so = f"another command starts or stops a server on port {port}; waiting for it"
    with locked(RUN / f"{port}.lock", lambda: tell(say_so)):
        yield


def _put_aside(folder: Path) -> None:
    """Keep the logs of the run before, which may tell why it ended, in place of those of the run before that."""
    before = folder.with_name(f"{folder.name}.previous")
    shutil.rmtree(before, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.replace(before)


def remember(server: Server) -> None:
    """Write the state by which :func:`find_server` finds the server."""
    write_atomically(server.folder / "state.json", json_bytes(asdict(server)))


def launch(
    folder: Path,
    temporary: Path,
    properties: Mapping[str, str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    archive: str = ARCHIVE,
) -> tuple[psutil.Process | None, int]:
    """Start TorchServe with the model of this project's name, in the background.

    Args:
        folder: for its settings, and for what Java prints, ``output.log``.
        temporary: its temporary folder, as ``environment`` names it.
        properties: its settings.
        arguments: of its command line, beside settings and model.
        environment: its environment variables.
        archive: the model's file in the model store.

    Returns:
        Java's process, None if it didn't start; and the launcher's exit code.

    Interrupted, it ends what it started.
    """
    config = folder / "config.properties"
    config.write_text(java_properties(properties), encoding="ascii")
    command = [
        *(sys.executable, "-m", "ts.model_server", "--start", "--no-config-snapshots"),
        *("--ts-config", str(config), "--models", f"{MODEL_NAME}={archive}", *arguments),
    ]
    with (folder / OUTPUT).open("wb") as log:
        launcher = psutil.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = launcher.wait()
        return _launched(temporary), code
    except BaseException:
        for process in (launcher, _launched(temporary)):  # Java is the launcher's child, then an orphan
            if process is not None:
                end_family(process, timeout=0)
        raise


def _launched(temporary: Path) -> psutil.Process | None:
    """Java's process, as the launcher has written it down; None if it didn't start."""
    try:
        return psutil.Process(int((temporary / ".model_server.pid").read_text(encoding="ascii")))
    except (OSError, ValueError, psutil.Error):
        return None


def server_environment(java_home: Path, folder: Path, temporary: Path) -> dict[str, str]:
    """The environment of TorchServe and its workers: of this command's, what ``PASSED_ON`` names.

    ``PYTHONPATH`` is left out: a worker's modules come from the archive and ``.venv`` alone.
    """
    return {
        **base_environment(java_home, folder, temporary),
        # Java reads it; vmargs of config.properties couldn't hold a path with a space
        "JDK_JAVA_OPTIONS": f'{os.environ.get("JDK_JAVA_OPTIONS", "")} "-javaagent:{AGENT}"'.lstrip(),
        # a thread pool a worker would only wait: the handler sets the threads that the card says
        "OMP_NUM_THREADS": "1",
        # glibc's, in bytes: what is larger than 1 MB, as a picture's pixels, goes back to the system when it is freed.
        # By itself the limit rises to 32 MB with the pictures, and each worker keeps twice that.
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
        "MALLOC_TRIM_THRESHOLD_": str(2**22),
    }


def base_environment(java_home: Path, folder: Path, temporary: Path) -> dict[str, str]:
    """What any TorchServe needs in its environment, without tuning."""
    # TorchServe runs `python` for its system metrics: this one; and `kill` to end a worker
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), str(PROGRAMS)]
    return {
        **{name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)},
        "JAVA_HOME": str(java_home),
        "PATH": os.pathsep.join(filter(None, path)),
        # Java reads and writes the names of files in the locale's encoding, and with LANG=C knows ASCII alone
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(temporary),
        "TEMP": str(temporary),
        "TMP": str(temporary),
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
    }


def wait_until_ready(server: Server, timeout: float = START_TIMEOUT) -> ModelStatus:
    """Wait until every worker is READY.

    Raises:
        CommandError: the server or a worker dies, with the worker's own error, or time is up.
    """
    deadline = time.monotonic() + timeout
    log = server.folder / LOG
    while True:
        if not server.process():
            raise CommandError(f"TorchServe died at its start: {_last_error(server.folder)}; see {log}")
        error = worker_error(log)
        if error:
            raise CommandError(f"the worker can't start: {error}; its log is {log}")
        try:
            status = server.management.status()
            if status.ready >= server.workers:
                return status
        except CommandError:
            pass  # not listening yet
        if time.monotonic() > deadline:
            raise CommandError(f"no READY server after {timeout:.0f} s; see {log} for what it waits for")
        time.sleep(POLL_SECONDS)


def worker_error(log: Path, since: int = 0, version: str = "") -> str:
    """The exception that ended a worker, from the server's log; "" if none died.

    Args:
        log: the server's log.
        since: bytes of it to pass over, unless it is rotated meanwhile.
        version: of the model whose workers alone are meant; "": all.
    """
    try:
        content = log.read_bytes()
    except OSError:
        return ""
    text = content[since if since <= len(content) else 0 :].decode("utf-8", "replace")
    if version:
        thread = f"-{MODEL_NAME}_{version}-"
        text = "".join(line for line in text.splitlines(keepends=True) if thread in line)
    start = text.find(_DEATH)
    if start < 0:
        return ""
    # the traceback's lines follow, each behind TorchServe's prefix; the exception is the first
    # line after it that isn't indented
    pattern = re.compile(r"MODEL_LOG - (\S.*)$", re.MULTILINE)
    for match in pattern.finditer(text, start):
        line = match.group(1)
        if not line.startswith("Traceback") and re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line):
            return line.strip()
    return "" if time.time() - log.stat().st_mtime < 1 else "the worker died without saying why"


def _last_error(folder: Path) -> str:
    logs = [path for path in (folder / OUTPUT, folder / LOG) if path.exists()]
    lines = [line for path in logs for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if "ERROR" in line or "Exception" in line or "Error" in line]
    return (errors or lines or ["no output"])[-1].strip()[:300]


def last_line(log: Path) -> str:
    """What a program said last, at most 300 characters; "no output" if nothing."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1].strip()[:300] if lines else "no output"


@contextmanager
def held_workers(server: Server, timeout: float = HOLD_TIMEOUT, version: str | None = None) -> Iterator[None]:
    """Every READY worker of ``server`` busy with a request of ours while the block runs (``handler.hold``).

    ``version`` is the model's whose workers are held, the default one unless told otherwise.

    Raises:
        CommandError: they don't get free within ``timeout`` seconds.
    """
    folder = Path(server.temporary, f"{PREFIX}{secrets.token_hex(16)}")
    headers = {HEADER: folder.name}
    if server.token:
        headers["Authorization"] = f"Bearer {read_token(server.folder, 'inference')}"
    wanted = {str(worker.pid) for worker in server.management.status(version).workers if worker.status == "READY"}

    def held() -> bool:
        try:
            return wanted <= {path.name for path in folder.iterdir()}
        except FileNotFoundError:
            return True  # released in this moment

    def send() -> None:
        # answered when the hold ends; earlier only if the queue was full or the batch held other requests
        while folder.exists() and not held():
            with contextlib.suppress(requests.RequestException, OSError):
                requests.post(address, headers=headers, timeout=timeout)
            time.sleep(0.02)

    address = f"{server.url}/predictions/{MODEL_NAME}" + (f"/{version}" if version else "")
    folder.mkdir(mode=0o700)
    # daemons: TorchServe never answers some of those whose worker it removes ("Unexpected job in sendError()")
    senders = [threading.Thread(target=send, daemon=True) for _ in wanted]
    try:
        for sender in senders:
            sender.start()
        deadline = time.monotonic() + timeout
        while not held():
            if time.monotonic() > deadline:
                raise CommandError(
                    f"the workers didn't get free within {timeout:.0f} s; nothing was changed, try again later"
                )
            time.sleep(0.01)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        deadline = time.monotonic() + RELEASE_TIMEOUT
        for sender in senders:
            sender.join(max(0.0, deadline - time.monotonic()))


def stop_server(server: Server, timeout: float = STOP_TIMEOUT) -> None:
    """Stop a server and its workers, remove its temporary folder and its state; the logs stay.

    Requests that are under way are answered first. TorchServe itself ends in the middle of them.

    Raises:
        CommandError: a process can't be stopped.
    """
    process = server.process()
    if process:
        (server.folder / STOPPING).touch()
        with drained(server, process):
            alive = end_family(process, timeout)
        if alive:
            raise CommandError(f"process {alive[0].pid} of the server doesn't end; stop it by hand")
    clean_up(server.port)


def was_stopped(server: Server) -> bool:
    """Whether :func:`stop_server` stops the server, or has, in this process or another."""
    return (server.folder / STOPPING).exists() or not (server.folder / "state.json").exists()


@contextmanager
def drained(server: Server, process: psutil.Process, timeout: float = DRAIN_TIMEOUT) -> Iterator[None]:
    """While the block runs, every request that was under way before is answered, and no worker takes another.

    The queue is first in, first out: when each worker holds a request of ours, what came before is
    answered. After ``timeout`` seconds, at Ctrl-C, and where the server doesn't answer, the block runs without.
    """
    with ExitStack() as stack:
        try:
            if _has_clients(server, process):
                time.sleep(UPLOAD_GRACE)
                for model in server.management.versions():
                    stack.enter_context(held_workers(server, timeout, model.version))
                for _ in range(network_threads(server.workers)):
                    # each of TorchServe's threads has written its answers before it gives this one
                    requests.get(f"{server.url}/ping", timeout=POLL_SECONDS * 10)
        except (CommandError, requests.RequestException, KeyboardInterrupt) as error:
            warn(f"requests may be lost: {error or 'interrupted'}")
        yield


def _has_clients(server: Server, process: psutil.Process) -> bool:
    """Whether somebody is connected to the inference ports; True where the system doesn't tell."""
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return True
    ports = (server.port, server.port + 3)
    return any(c.status == psutil.CONN_ESTABLISHED and c.laddr and c.laddr.port in ports for c in connections)


def clean_up(port: int) -> None:
    """Remove what a dead server on ``port`` left: temporary folder, tokens, settings, state; the logs stay.

    Nothing is done where another one runs there by now.
    """
    if not run_folder(port).exists():
        return
    with _locked(port):
        if not find_server(port):
            _remove_traces(port)


def _remove_traces(port: int) -> None:
    folder = run_folder(port)
    try:
        temporary = Path(json.loads((folder / "state.json").read_text(encoding="utf-8"))["temporary"])
        shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing was left
    for name in (TOKENS, "config.properties", "state.json", STOPPING):
        (folder / name).unlink(missing_ok=True)


def end_family(process: psutil.Process, timeout: float) -> list[psutil.Process]:
    """End a server's process: ask it, wait ``timeout`` seconds for it and its workers, kill what is left.

    Returns:
        The processes that are alive even then.
    """
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=timeout)
    for left in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    return list(psutil.wait_procs(alive, timeout=10)[1])


def _reachable(host: str) -> str:
    """An address for a client on this machine: a wildcard is reached over loopback."""
    return {"0.0.0.0": LOOPBACK, "::": "[::1]"}.get(host, _bracket(host))  # noqa: S104 (nothing is bound)


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
