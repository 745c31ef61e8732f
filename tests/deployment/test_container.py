"""The image, built from the Dockerfile and run as docs/container.md says: without rights, read-only, limited."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.card import sha256_of
from scripts.lib.paths import BUNDLED, ROOT
from tests.support.clients.load import sending
from tests.support.deployment.images import IMAGE, Container, Engine
from tests.support.machine.ports import free_ports
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA, DOG, GOLDEN, Golden
from tests.support.servers.versions import write_golden

PICTURE = CHELSEA.read_bytes()
TIMEOUT_S = 60
LIMITED = (
    *("--read-only", "--tmpfs", "/tmp:size=1g,mode=1777", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--memory", "3g", "--cpus", "2"),
)
"""Without rights, on a read-only root, with limits: as docs/container.md runs it."""


@dataclass(frozen=True)
class Served:
    """A container whose server is READY."""

    container: Container
    url: str

    @property
    def predictions(self) -> str:
        """The route of the contract."""
        return f"{self.url}/predictions/densenet"


def serving(engine: Engine, *arguments: str, flags: tuple[str, ...] = ()) -> Iterator[Served]:
    """A healthy container with its port published on a free one."""
    port = free_ports()
    with engine.running(*arguments, flags=("--publish", f"127.0.0.1:{port}:5000", *LIMITED, *flags)) as container:
        container.wait_until_healthy()
        container.wait_for_line("Ctrl-C stops it")  # warmed up
        yield Served(container, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def served(engine: Engine, image: dict[str, Any]) -> Iterator[Served]:
    """The image as it is."""
    yield from serving(engine)


@pytest.fixture
def fresh(engine: Engine, image: dict[str, Any]) -> Iterator[Served]:
    """A container of the test's own, which it may end."""
    yield from serving(engine)


def test_the_image_says_what_it_is(image: dict[str, Any]) -> None:
    config = image["Config"]
    assert config["Entrypoint"] == ["python3", "scripts/serve.py", "--host", "0.0.0.0"]
    assert (config["User"], config["WorkingDir"], config["StopSignal"]) == ("10001:10001", "/app", "SIGTERM")
    assert set(config["ExposedPorts"]) == {"5000/tcp", "5002/tcp"}
    assert image["Healthcheck"]["Test"] == ["CMD", "python3", "scripts/status.py"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"title", "description", "version", "revision"} <= {name.rpartition(".")[2] for name in labels}
    variables = dict(pair.split("=", 1) for pair in config["Env"])
    assert not [name for name in variables if name.startswith(("PIP_", "SSL_"))], "this machine's settings"


def test_the_last_stage_holds_what_serving_needs_and_nothing_else(served: Served) -> None:
    tools = served.container.execute("sh", "-c", "ls /app; command -v gcc cc make pip pip3 git curl; true").stdout
    assert tools.split() == [
        "LICENSE",
        "archives.sha256",
        "config",
        "docs",
        "handler",
        "index_to_name.json",
        "model_store",
        "pyproject.toml",
        "requirements-int8.lock",
        "requirements-torch.lock",
        "requirements.lock",
        "sbom.json",
        "scripts",
    ]
    # empty files may be where the build had this machine's settings of pip mounted
    look = (
        "find /var/lib/apt/lists /var/cache/apt /root /etc/pip.conf /app/tests /app/.git -type f -size +4k 2>/dev/null"
    )
    assert served.container.execute("sh", "-c", look).stdout == ""
    packages = served.container.execute(
        "sh", "-c", "cd /app/.venv/lib/python3.*/site-packages && ls -d *"
    ).stdout.split()
    assert "torch" in packages
    assert not {"pip", "triton"} & set(packages)


def test_it_runs_without_rights_on_a_read_only_root(served: Served) -> None:
    facts = served.container.execute(
        "sh",
        "-c",
        "id -u; id -g; grep -E 'CapEff|NoNewPrivs' /proc/1/status; touch /app/x; find / -xdev -writable -type f",
    )
    identity = facts.stdout.split()
    assert identity[:6] == ["10001", "10001", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    assert identity[6:] == [], "files that the server could change"
    assert "Read-only file system" in facts.stderr


def test_two_processors_are_two_workers_at_most(served: Served) -> None:
    status = json.loads(served.container.execute("python3", "scripts/status.py", "--json").stdout)
    assert 1 <= status["ready"] <= 2
    assert status["card"]["name"] == "densenet-pets"


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_golden_pictures(served: Served, golden: Golden) -> None:
    answer = requests.put(served.predictions, data=golden.path.read_bytes(), timeout=TIMEOUT_S).json()
    assert answer["label"] in golden.labels
    assert golden.low <= answer["probability"] <= golden.high


def test_the_curl_lines_of_the_readme(served: Served) -> None:
    picture = str(DOG if DOG.is_file() else CHELSEA)

    def curl(*arguments: str) -> str:
        command = ["curl", "--silent", "--show-error", "--fail", *arguments, served.predictions]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout

    label = json.loads(curl("-T", picture))["label"]
    assert label == "Samoyed" or not DOG.is_file()
    assert curl("-H", "Accept: text/plain", "-T", picture) == f"{label}\n"
    assert len(json.loads(curl("-F", f"file=@{picture}", "-F", "topk=2"))["top"]) == 2


def test_workers_are_scaled_through_the_management_api(served: Served) -> None:
    for workers in ("2", "1", "2"):  # down, too, for which TorchServe runs the program kill
        done = served.container.execute("python3", "scripts/scale.py", workers)
        assert done.stdout == f"{workers} workers READY (at least {workers}, at most {workers})\n", done.stderr


def test_only_inference_and_what_is_asked_for_is_open(engine: Engine, image: dict[str, Any]) -> None:
    """Metrics behind --metrics-host, without a token; management never, and not on the metrics' port either."""
    first = free_ports()
    ports = range(first, first + 3)
    published = [
        part for host, inside in zip(ports, (5000, 5001, 5002)) for part in ("-p", f"127.0.0.1:{host}:{inside}")
    ]
    with engine.running("--metrics-host", "0.0.0.0", flags=(*published, *LIMITED)) as container:
        container.wait_until_healthy()
        inference, management, metrics = (f"http://127.0.0.1:{port}" for port in ports)
        assert requests.get(f"{inference}/ping", timeout=TIMEOUT_S).json() == {"status": "Healthy"}
        assert "ts_" in requests.get(f"{metrics}/metrics", timeout=TIMEOUT_S).text
        for address in (inference, metrics):
            assert not requests.get(f"{address}/models", timeout=TIMEOUT_S).ok
            assert not requests.put(f"{address}/models/densenet?min_worker=9", timeout=TIMEOUT_S).ok
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{management}/models", timeout=TIMEOUT_S)


def test_a_mounted_model_replaces_the_image_s(engine: Engine, image: dict[str, Any]) -> None:
    mount = ("--volume", f"{BUNDLED}:/models/mine:ro")
    for served in serving(engine, "--weights", "/models/mine", "--workers", "1", flags=mount):
        assert "built /tmp/densenet/model_store/densenet.mar" in served.container.logs()
        assert requests.put(served.predictions, data=PICTURE, timeout=TIMEOUT_S).ok


def test_a_version_is_deployed_rolled_back_and_removed(engine: Engine, image: dict[str, Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mounts = ("--volume", f"{BUNDLED}:/models/mine:ro", "--volume", f"{tmp_path}:/golden:ro")
    archive = "/tmp/densenet/model_store/densenet-2.0.mar"
    for served in serving(engine, "--weights", "/models/mine", "--workers", "1", flags=mounts):
        write_golden(tmp_path, requests.put(served.predictions, data=PICTURE, timeout=TIMEOUT_S).json()["label"])
        for command in (
            ("build_archive.py", "--weights", "/models/mine", "--model-version", "2.0"),
            ("deploy.py", archive, "--golden", "/golden/golden.csv"),
            ("deploy.py", "--rollback"),
            ("deploy.py", "--remove", "2.0"),
        ):
            script, *arguments = command
            done = served.container.execute("python3", f"scripts/{script}", *arguments)
            assert done.returncode == 0, done.stderr
        assert requests.put(served.predictions, data=PICTURE, timeout=TIMEOUT_S).ok


def test_an_archive_and_settings_from_outside(engine: Engine, image: dict[str, Any], tmp_path: Path) -> None:
    """Another archive by a variable, other settings by a mount."""
    with engine.running("600", flags=("--entrypoint", "sleep")) as container:
        engine.podman("cp", f"{container.id}:/app/model_store/densenet.mar", str(tmp_path / "mine.mar"))
    mine = tmp_path / "mine.mar"
    with zipfile.ZipFile(mine, "a") as archive:
        archive.comment = b"another than the image's"
    settings = tmp_path / "config.properties"
    text = (ROOT / "config" / "config.properties").read_text(encoding="utf-8")
    settings.write_text(text.replace("max_request_size=33554432", "max_request_size=100000"), encoding="utf-8")
    mounts = (
        *("--volume", f"{mine}:/models/mine.mar:ro", "--env", "DENSENET_WEIGHTS=/models/mine.mar"),
        *("--volume", f"{settings}:/app/config/config.properties:ro"),
    )
    for path in (mine, settings):
        path.chmod(0o644)
    with engine.running(flags=(*mounts, *LIMITED)) as container:
        assert container.wait_for_end() == 1
        assert f"error: /models/mine.mar wasn't built here: its SHA-256 is {sha256_of(mine)}; " in container.logs()
    known = ("--env", f"DENSENET_SHA256={sha256_of(mine)}")
    for served in serving(engine, "--workers", "1", flags=(*mounts, *known)):
        assert "using /models/mine.mar" in served.container.logs()
        assert requests.put(served.predictions, data=PICTURE, timeout=TIMEOUT_S).status_code == 413


def test_a_dead_server_ends_the_container(fresh: Served) -> None:
    killed = fresh.container.execute("python3", "-c", _KILL_JAVA)
    assert killed.returncode == 0, killed.stderr
    assert fresh.container.wait_for_end() == 1
    assert "error: TorchServe ended by itself" in fresh.container.logs()


_KILL_JAVA = """
import json, os, signal
os.kill(json.load(open("/tmp/densenet/run/5000/state.json"))["pid"], signal.SIGKILL)
"""


def test_sigterm_answers_what_is_under_way(fresh: Served, record_property: Any) -> None:
    """Twelve clients without a pause; each request that had begun before the signal is answered with 200."""
    with sending(fresh.predictions, 12) as sent:
        wait_until(lambda: len(sent) >= 50)
        signalled = time.monotonic()
        fresh.container.engine.podman("kill", "--signal", "TERM", fresh.container.id)
        code = fresh.container.wait_for_end()
        took = time.monotonic() - signalled
    under_way = [request for request in sent if request.begun < signalled < request.ended]
    print(f"ended {took:.1f} s after SIGTERM; under way then: {Counter(r.outcome for r in under_way)}")
    assert len(under_way) >= 10
    assert Counter(r.outcome for r in sent if r.begun < signalled) == {200: sum(r.begun < signalled for r in sent)}
    assert code == 0
    assert took < 60
    assert fresh.container.logs().rstrip().endswith("stopped")


def test_a_file_has_all_of_it(engine: Engine, image: dict[str, Any]) -> None:
    """What ``docker save`` writes for ``docker load``: every layer, the whole configuration, the health check, too."""
    file = engine.folder / "densenet.tar"
    engine.podman("save", "--output", str(file), IMAGE)
    with tarfile.open(file) as saved:

        def read(name: str) -> Any:
            part = saved.extractfile(name)
            assert part is not None
            return json.load(part)

        (manifest,) = read("manifest.json")
        config = read(manifest["Config"])["config"]
        layers = sum(saved.getmember(layer).size for layer in manifest["Layers"])
    file.unlink()
    assert manifest["RepoTags"] == [IMAGE]
    assert {name: value for name, value in config.items() if name in image["Config"]} == image["Config"]
    assert config["Healthcheck"] == image["Healthcheck"]
    assert layers == pytest.approx(image["Size"], rel=0.05)
