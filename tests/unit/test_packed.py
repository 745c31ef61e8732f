"""A finished archive read without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from scripts.lib.console import CommandError
from scripts.lib.model_folder import read_model_folder
from scripts.lib.packed import MANIFEST, MODEL_CONFIG, packed_card, packed_model
from scripts.lib.paths import BUNDLED, ROOT


def test_the_card_of_an_archive(tmp_path: Path) -> None:
    card = read_model_folder(BUNDLED).card
    archive = tmp_path / "a.mar"
    with zipfile.ZipFile(archive, "w") as mar:
        mar.writestr(MODEL_CONFIG, yaml.safe_dump({"batchSize": 1, "handler": card.to_dict()}))
        mar.writestr(MANIFEST, json.dumps({"model": {"modelVersion": "2.0"}}))
    assert packed_card(archive) == card
    assert packed_model(archive) == ("2.0", card)


def test_what_is_no_archive_of_this_project(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"can't read the archive .*a\.mar: No such file or directory; build_"):
        packed_card(tmp_path / "a.mar")
    (tmp_path / "b.mar").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "c.mar", "w") as mar:
        mar.writestr("other", "")
    with zipfile.ZipFile(tmp_path / "d.mar", "w") as mar:
        mar.writestr(MODEL_CONFIG, "batchSize: 1")
    for name in "bcd":
        with pytest.raises(CommandError, match=rf"{name}\.mar is no archive of this project"):
            packed_card(tmp_path / f"{name}.mar")


def test_a_server_on_one_starts_without_pytorch() -> None:
    """Importing it takes seconds, also in a container whose health check runs every few."""
    modules = "scripts.lib.packed, scripts.lib.machine, scripts.lib.server, scripts.lib.serving"
    code = f"import sys, {modules}; scripts.lib.machine.has_nvidia_gpu = lambda: False; "
    code += "scripts.lib.machine.default_workers(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
