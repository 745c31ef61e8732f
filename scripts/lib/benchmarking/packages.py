"""The packages of the alternatives: installed at the first use, into the cache, away from the project's own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.lib import paths
from scripts.lib.console import CommandError, say
from scripts.lib.download import locked

REQUIREMENTS = Path(__file__).with_name("apps") / "requirements.txt"


def installed_packages() -> Path:
    """The folder with the alternatives' packages, for a ``PYTHONPATH``; filled if it isn't there yet.

    The project's own requirements constrain them, so that nothing in it shadows another torch,
    numpy or Pillow than that of this Python.

    Raises:
        CommandError: pip can't install them, or the cache isn't writable.
    """
    constraints = paths.ROOT / "requirements.txt"
    version = "{}.{}".format(*sys.version_info[:2])
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + constraints.read_bytes() + version.encode()).hexdigest()[:16]
    folder = paths.CACHE / "benchmark" / key
    with locked(folder, "another process is installing the alternatives' packages; waiting for it"):
        if folder.is_dir():
            return folder
        say("installing the alternatives' packages, once (200 MB, about half a minute)")
        part = folder.with_name(f"{key}.part")
        shutil.rmtree(part, ignore_errors=True)
        command = [
            *(sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"),
            *("--progress-bar=off", "--target", str(part), "-r", str(REQUIREMENTS), "-c", str(constraints)),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode or not part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise CommandError(
                f"the alternatives' packages can't be installed: {said[-1].strip() if said else 'pip said nothing'}; "
                "check the network connection and the free space on the disk, or leave flask, fastapi, litserve and "
                "bentoml out of --contenders"
            )
        part.replace(folder)  # whole or not at all: an interrupted installation is made again
        return folder
