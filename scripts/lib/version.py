"""The version of this project: it stands in ``pyproject.toml``, and what carries it elsewhere is compared by tests."""

from __future__ import annotations

import re
from pathlib import Path


def project_version(root: Path) -> str:
    """The version of a checkout, such as ``0.1.0``."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return str(re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0])  # tomllib came with Python 3.11
