"""Packages that few people need: installed when they are asked for, into the cache, never into ``.venv``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from scripts.lib import paths
from scripts.lib.console import CommandError, say


def optional_packages(requirements: Path, what: str) -> Path:
    """The folder with the packages of ``requirements``, installed now if it isn't there.

    Args:
        requirements: a requirements file. What ``requirements.txt`` pins keeps its version.
        what: what they are for, as it stands in a message.

    Raises:
        CommandError: they can't be installed.
    """
    constraints = paths.ROOT / "requirements.txt"
    key = hashlib.sha256(requirements.read_bytes() + constraints.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = paths.CACHE / "packages" / f"{requirements.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return folder
        say(f"installing the packages for {what} ({requirements.name}) …")
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            command = [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--target", str(part), "--requirement", str(requirements), "--constraint", str(constraints)),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
                raise CommandError(
                    f"the packages for {what} can't be installed: {lines[-1].strip()[:300]}; "
                    f"look at {requirements.name} and the connection, and run the command again"
                )
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder
