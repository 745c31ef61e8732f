"""What a test finds around it: neither settings nor caches of the person who tests, nor traces of runs before."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

SETTINGS = re.compile(
    r"DENSENET_(?!FUZZ_SEED$).*|BENCHMARK_.*|TS_.*|(LOG|METRICS)_LOCATION|UV_.*|XDG_(CACHE|CONFIG|DATA|STATE)_HOME"
    r"|JAVA_HOME|CLASSPATH|_?JAVA_(TOOL_)?OPTIONS|JDK_JAVA_OPTIONS|TORCH_HOME|MPL.*"
    r"|PYTHON(PATH|HOME|WARNINGS|OPTIMIZE|UTF8|IOENCODING|STARTUP|_COLORS)|COLUMNS|LINES"
    r"|(NO|FORCE)_COLOR|CLICOLOR.*|PAGER|HYPOTHESIS_.*|BASH_ENV|ENV|CDPATH|(DOCKER|CONTAINER)_HOST"
)
"""Variables that change what this project, or a program that its tests start, does."""
PIP_CONFIG = (".config/pip/pip.conf", ".pip/pip.conf", "Library/Application Support/pip/pip.conf")
"""Where pip looks in a home."""
PROXY = re.compile(r"(https?|ftp|all|grpc|no)_proxy", re.IGNORECASE)
PROXIES = "TESTS_PROXIES"
"""Variable that keeps them, as JSON, for :func:`outside`."""


def clean(environment: MutableMapping[str, str], folder: Path) -> None:
    """Remove settings from an environment, and give it a home, a cache and folders of servers in ``folder``.

    Certificates and pip's settings stay; proxies are kept for what asks the internet, see :func:`outside`.
    """
    home = Path(environment.get("HOME") or Path.home())
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    for name in [name for name in environment if SETTINGS.fullmatch(name)]:
        del environment[name]
    for path in (config, *(home / name for name in PIP_CONFIG)):
        if path.is_file():
            environment.setdefault("PIP_CONFIG_FILE", str(path))
    proxies = {name: environment.pop(name) for name in [*environment] if PROXY.fullmatch(name)}
    environment[PROXIES] = json.dumps(proxies)
    for name in ("home", "cache"):
        (folder / name).mkdir()
    environment["HOME"] = str(folder / "home")
    environment["DENSENET_CACHE"] = str(folder / "cache")
    environment["MPLCONFIGDIR"] = str(folder / "cache" / "matplotlib")  # as the commands have it: one list of fonts
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "cache" / "hypothesis")
    environment["DENSENET_RUN"] = str(folder / "run")
    environment["DENSENET_MODEL_STORE"] = str(folder / "model_store")


def outside() -> dict[str, str]:
    """Variables that lead to the internet, where the person who tests needs any."""
    proxies: dict[str, str] = json.loads(os.environ.get(PROXIES, "{}"))
    return proxies


def clean_surroundings() -> Path | None:
    """Clean this process' environment; the folder to remove at its end. A process of pytest-xdist has it clean."""
    os.umask(0o022)  # what tests write is read by others, as nginx's workers
    if "PYTEST_XDIST_WORKER" in os.environ:
        return None
    folder = Path(tempfile.mkdtemp(prefix="densenet-tests-"))
    clean(os.environ, folder)
    return folder


def remove(folder: Path | None) -> None:
    """Remove what a run has left there."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
