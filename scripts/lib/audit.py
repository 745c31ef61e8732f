"""Known weaknesses of the locked packages, asked of PyPI by pip-audit.

pip-audit succeeds, too, where PyPI's stand-in has never heard of weaknesses. Here a package counts as asked about when
the service has answered about it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.console import CommandError

SERVICE: tuple[str, ...] = ("--vulnerability-service", "pypi")
"""Who is asked: PyPI, from which the packages come; nobody else is told what is installed."""
TIMEOUT_S = 15
"""Seconds in which the service must begin an answer."""


class NotAskedError(CommandError):
    """The service gave no answer, so nothing is known."""


@dataclass(frozen=True)
class Audit:
    """What was answered.

    ``asked``: the packages about which the service knows. ``weak``: a line a weakness that isn't ignored.
    """

    asked: int
    weak: Sequence[str]


def ignored(text: str) -> dict[str, str]:
    """Identifier to reason, from lines such as ``CVE-2026-1: not reached, because …``; ``#`` begins a comment.

    Raises:
        CommandError: a line has no reason.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    entries = {name.strip(): reason.strip() for name, _, reason in (line.partition(":") for line in lines)}
    for name, reason in entries.items():
        if not reason:
            raise CommandError(f"{name} is to be ignored without a reason; write it as {name}: REASON")
    return entries


def audit(locks: Sequence[Path], ignore: Sequence[str]) -> Audit:
    """Ask about the packages that the locks mean on this Python and system.

    Args:
        locks: lock files.
        ignore: identifiers (CVE, GHSA, PYSEC) that don't count.

    Raises:
        NotAskedError: about one package or more there was no answer, and the others have no known weakness.
    """
    command = [
        *(sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner=off"),
        *("--format=json", f"--timeout={TIMEOUT_S}", *SERVICE),
        *(argument for lock in locks for argument in ("--requirement", str(lock))),
        *(argument for name in ignore for argument in ("--ignore-vuln", name)),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        said = done.stderr.split("\n")
        raise NotAskedError(f"pip-audit has no answer: {next((line for line in reversed(said) if line), '')}") from None
    weak = [
        f"{package['name']} {package['version']}: {found['id']} ({', '.join(found['aliases'])}), "
        f"fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped and not weak:
        raise NotAskedError(f"the service has no answer about {len(skipped)} of {len(packages)} packages")
    return Audit(len(packages) - len(skipped), weak)
