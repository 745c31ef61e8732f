"""Programs of the machine that tests drive: nginx, Prometheus, Chromium, buildah …"""

from __future__ import annotations

import os
import shutil

import pytest


def program(*names: str, package: str) -> str:
    """The path of the first of ``names`` that is installed; without one the test is skipped, in CI it fails.

    Args:
        names: what the program may be called.
        package: Debian's package that brings it.
    """
    for name in names:
        if path := shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"):
            return path
    if os.environ.get("CI"):
        pytest.fail(f"no {names[0]} here, and CI installs one: see .ci/run")
    pytest.skip(f"needs {names[0]} (apt-get install {package})")
