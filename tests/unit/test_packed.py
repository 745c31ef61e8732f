"""A finished archive read without PyTorch."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from scripts.lib.archive import ensure_archive
from scripts.lib.console import CommandError
from scripts.lib.model_folder import ModelFolder, read_model_folder
from scripts.lib.options import sha256
from scripts.lib.packed import MANIFEST, MODEL_CONFIG, check_archive, packed_card, packed_model, record
from scripts.lib.paths import ARCHIVES, BUNDLED, ROOT


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


def test_an_archive_that_is_up_to_date_is_found_without_pytorch(tmp_path: Path, tiny_model: ModelFolder) -> None:
    ensure_archive(tiny_model, tmp_path)
    code = (
        "import sys; from pathlib import Path; from scripts.lib import archive, machine, model_folder\n"
        "machine.has_nvidia_gpu = lambda: False\n"
        "model = model_folder.read_model_folder(Path(sys.argv[1]))\n"
        "_, _, built = archive.ensure_archive(model, Path(sys.argv[2]))\n"
        "print(built, 'torch' in sys.modules)"
    )
    found = [sys.executable, "-c", code, str(tiny_model.path), str(tmp_path)]
    done = subprocess.run(found, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive, a cache and a checkout that know of none."""
    monkeypatch.setattr("scripts.lib.paths.CACHE", tmp_path / "cache")
    monkeypatch.setattr("scripts.lib.paths.ROOT", tmp_path / "checkout")
    archive = tmp_path / "a.mar"
    archive.write_bytes(b"archive")
    return archive


HASH = hashlib.sha256(b"archive").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()


def test_an_archive_from_elsewhere_needs_its_hash(built: Path) -> None:
    with pytest.raises(CommandError) as refused:
        check_archive(built, None)
    assert str(refused.value) == (
        f"{built} wasn't built here: its SHA-256 is {HASH}; compare it with the one that build_archive.py printed "
        "where it was built, and add that one as --sha256 HEX"
    )
    check_archive(built, HASH)
    with pytest.raises(CommandError, match=r"^can't read the archive .*none\.mar: No such file"):
        check_archive(built.with_name("none.mar"), HASH)


def test_an_archive_that_was_built_here_is_known_until_a_byte_changes(built: Path, tmp_path: Path) -> None:
    for built_here in (OTHER, HASH, OTHER):
        record(built_here)
    check_archive(built, None)
    known = tmp_path / "cache" / ARCHIVES
    assert known.read_text(encoding="ascii") == f"{OTHER}\n{HASH}\n"
    if sys.platform != "win32":
        assert known.stat().st_mode & 0o777 == 0o600
    built.write_bytes(b"Archive")
    with pytest.raises(CommandError, match=r"wasn't built here"):
        check_archive(built, None)


def test_a_hash_that_is_given_decides_alone(built: Path) -> None:
    record(HASH)
    with pytest.raises(CommandError) as refused:
        check_archive(built, OTHER)
    assert str(refused.value) == (
        f"{built} isn't the archive that is expected: its SHA-256 is {HASH}, expected {OTHER}; "
        "fetch it again from where it was built"
    )


def test_the_archive_of_an_image_is_known_by_the_record_beside_the_code(built: Path, tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / ARCHIVES).write_text(f"{HASH}\n", encoding="ascii")
    check_archive(built, None)


def test_a_hash_is_64_digits() -> None:
    assert sha256(HASH.upper()) == HASH
    for text in (HASH[:-1], HASH + "0", "g" * 64, "", HASH[:-1] + "\n"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no SHA-256, expected 64 hexadecimal digits"):
            sha256(text)
