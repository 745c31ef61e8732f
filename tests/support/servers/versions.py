"""A second model to deploy: the bundled one, each of its labels with a word before it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from scripts.lib.archive import ensure_archive
from scripts.lib.model_folder import CARD, LABELS, json_bytes, read_model_folder
from scripts.lib.paths import BUNDLED
from tests.support.pictures.golden import CHELSEA

NEW_LABEL = "new "
"""What the labels of the new model begin with."""


def write_new_version(store: Path) -> Path:
    """The archive of the new model, version 2.0, in ``store``."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)
        labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        (folder / LABELS).write_bytes(json_bytes({index: NEW_LABEL + label for index, label in labels.items()}))
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        (folder / CARD).write_bytes(json_bytes({**card, "name": "densenet-new"}))
        return ensure_archive(read_model_folder(folder), store, version="2.0")[0]


def write_golden(folder: Path, label: str, probability: float = 0.3) -> str:
    """A file in ``folder`` with one golden picture, the cat of ``tests.support.pictures.golden``."""
    shutil.copy(CHELSEA, folder)
    file = folder / "golden.csv"
    file.write_text(f"path,label,probability\n{CHELSEA.name},{label},{probability}\n", encoding="utf-8")
    return str(file)
