"""Where things are, and what the served model is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout."""
CONFIG = ROOT / "config"
HANDLER = ROOT / "handler"
OPENAPI = ROOT / "docs" / "openapi.yaml"
"""The description of the inference API."""
MODEL_NAME = "densenet"
"""The name under which the model is served and its archive is stored."""
MODEL_STORE = Path(os.environ.get("DENSENET_MODEL_STORE") or ROOT / "model_store")
"""Where archives are built and served from; ``DENSENET_MODEL_STORE`` moves it."""
BUNDLED = ROOT / "model_store" / "bundled"
"""The model that the repository carries."""
VENV = ROOT / ".venv"
RUN = Path(os.environ.get("DENSENET_RUN") or ROOT / ".run")
"""State and logs of the servers that ``serve.py`` started, a folder each; ``DENSENET_RUN`` moves it."""


def _cache() -> Path:
    base = os.environ.get("DENSENET_CACHE")
    if base:
        return Path(base)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "densenet-serving"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densenet-serving"


CACHE = _cache()
"""Downloaded weights, computed features, known archives; ``DENSENET_CACHE`` moves it. Safe to delete."""
ARCHIVES = "archives.sha256"
"""File of the cache with the SHA-256 of each archive that was built here; an image carries one in its checkout."""
