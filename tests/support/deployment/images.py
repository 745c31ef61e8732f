"""Images and containers for tests, without a Docker engine and without a registry.

    debootstrap ─▶ debian:bookworm-…-slim ─▶ buildah builds the Dockerfile as it stands ─▶ podman and runc run it

Everything lies in one folder of the test's own, and goes with it.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.lib.paths import ROOT
from tests.support.machine.programs import program
from tests.support.machine.surroundings import outside
from tests.support.machine.waiting import wait_until

BASE = re.findall(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[0]
"""The image that the Dockerfile starts from."""
IMAGE = "localhost/densenet:latest"
DEBIAN = "http://deb.debian.org/debian"
"""What Debian itself names where nothing else is set."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_TIMEOUT_S = 1500
COMMAND_TIMEOUT_S = 300


class Engine:
    """buildah and podman with a store of their own.

    Args:
        folder: for images, containers and settings; needs about 20 GB while images are built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buildah = program("buildah", package="buildah")
        self._podman = program("podman", package="podman")
        program("runc", package="runc")
        settings = {
            # Where the tests run in a sandbox, limits can't be raised; crun and systemd's cgroups don't work there.
            "containers.conf": '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n',
            "storage.conf": f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n',
        }
        for name, text in settings.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.environment = {
            **os.environ,
            **outside(),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "TMPDIR": str(folder),
        }

    def _call(self, command: list[str], timeout: float, check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def buildah(self, *arguments: str, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """What ``buildah`` prints; the test fails if it does."""
        return self._call([self._buildah, *arguments], timeout, check=True).stdout.strip()

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``podman`` run to its end; the test fails if it does, unless ``check`` is off."""
        return self._call([self._podman, *arguments], COMMAND_TIMEOUT_S, check)

    def make_base(self) -> None:
        """What the Dockerfile starts from: the content of Debian's slim image, from Debian's archive."""
        root = self.folder / "rootfs"
        debootstrap = program("debootstrap", package="debootstrap")
        self._call(
            [debootstrap, "--variant=minbase", "bookworm", str(root), debian_mirror()], BUILD_TIMEOUT_S, check=True
        )
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, str(root), "/")
        self.buildah("commit", "--quiet", "--rm", container, f"docker.io/library/{BASE}")
        shutil.rmtree(root)

    def stand_in(self, name: str, *packages: str, entrypoint: str = "") -> None:
        """An image of a public one's name, made of Debian's packages on the base."""
        container = self.buildah("from", "--pull=never", f"docker.io/library/{BASE}")
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            run = [
                "run",
                "--isolation",
                "chroot",
                "--network",
                "host",
                container,
                "--",
                "apt-get",
                "--quiet=2",
                *command,
            ]
            self.buildah(*run, timeout=BUILD_TIMEOUT_S)
        if entrypoint:
            self.buildah("config", "--entrypoint", json.dumps([entrypoint]), container)
        self.buildah("commit", "--quiet", "--rm", container, name)

    def build(self, tag: str = IMAGE) -> None:
        """The Dockerfile as it stands, with this machine's certificates and settings of pip mounted beside it."""
        pip = self.folder / "pip.conf"
        with pip.open("w", encoding="utf-8") as file:
            pip_settings().write(file)
        mounts = ["-v", f"{pip}:/etc/pip.conf:ro"]
        if CERTIFICATES.is_file():
            mounts += ["-v", f"{CERTIFICATES}:/etc/pip-certificates.crt:ro"]
        self.buildah(
            *("bud", "--isolation", "chroot", "--network", "host", "--pull=never"),
            # docker: a health check is nothing that OCI's format knows
            *("--format", "docker", "--layers=false", *mounts, "--tag", tag, str(ROOT)),
            timeout=BUILD_TIMEOUT_S,
        )

    def inspect(self, tag: str = IMAGE) -> dict[str, Any]:
        """What ``podman image inspect`` says of an image."""
        (facts,) = json.loads(self.podman("image", "inspect", tag).stdout)
        return dict(facts)

    @contextmanager
    def running(self, *arguments: str, flags: tuple[str, ...] = (), tag: str = IMAGE) -> Iterator[Container]:
        """A container while the block runs.

        Args:
            arguments: of the entry point, or after it.
            flags: of ``podman run``.
            tag: the image.
        """
        container = Container(self, self.podman("run", "--detach", *flags, tag, *arguments).stdout.strip())
        try:
            yield container
        finally:
            self.podman("rm", "--force", "--time", "0", container.id)

    def close(self) -> None:
        """Remove all containers, images and files."""
        self.podman("rm", "--all", "--force", "--time", "0", check=False)
        self.podman("rmi", "--all", "--force", check=False)
        self.podman("system", "reset", "--force", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class Container:
    """A container that runs, or has ended."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.id = engine, name

    def state(self) -> dict[str, Any]:
        """Docker's words for it: ``Status`` (``running``, ``exited``), ``ExitCode``, ``Pid`` and more."""
        (facts,) = json.loads(self.engine.podman("inspect", self.id).stdout)
        return dict(facts["State"])

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the container."""
        return self.engine.podman("exec", self.id, *command, check=False)

    def logs(self) -> str:
        """What its first process printed."""
        done = self.engine.podman("logs", self.id)
        return done.stdout + done.stderr

    def wait_until_healthy(self, timeout: float = 180) -> None:
        """Wait until the image's own health check succeeds."""

        def healthy() -> bool:
            if self.engine.podman("healthcheck", "run", self.id, check=False).returncode == 0:
                return True
            assert self.state()["Status"] == "running", self.logs()
            return False

        wait_until(healthy, timeout, self.logs, pause=2)  # each look starts a Python

    def wait_for_line(self, text: str, timeout: float = 180) -> None:
        """Wait until its first process has printed ``text``."""

        def printed() -> bool:
            if text in self.logs():
                return True
            assert self.state()["Status"] == "running", self.logs()
            return False

        wait_until(printed, timeout, self.logs, pause=0.5)

    def wait_for_end(self, timeout: float = 120) -> int:
        """Wait until it has ended; its exit code."""
        wait_until(lambda: self.state()["Status"] != "running", timeout, self.logs, pause=0.5)
        return int(self.state()["ExitCode"])


def debian_mirror() -> str:
    """The mirror of Debian in this machine's settings of apt, which apt itself reads; without one Debian's default."""
    apt = shutil.which("apt-get")
    command = [apt or "apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout if apt else ""
    found = re.search(r"^((?:https?|file):\S+/debian)/?$", listed, re.MULTILINE)
    return found[1] if found else DEBIAN


def pip_settings(environment: Mapping[str, str] = os.environ) -> configparser.ConfigParser:
    """How pip reaches its packages on this machine: its files' settings and its variables, as one file."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(["/etc/pip.conf", environment.get("PIP_CONFIG_FILE", "")])
    if not settings.has_section("global"):
        settings.add_section("global")
    for name in ("index-url", "extra-index-url", "trusted-host", "default-timeout"):
        if value := environment.get(f"PIP_{name.upper().replace('-', '_')}"):
            settings.set("global", name, value)
    for name in ("find-links", "cache-dir"):
        settings.remove_option("global", name)  # folders that aren't there in the image
    if CERTIFICATES.is_file():
        settings.set("global", "cert", "/etc/pip-certificates.crt")
    return settings
