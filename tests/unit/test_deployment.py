"""What ``deploy.py`` knows before it asks a server: golden pictures, archives, versions."""

from __future__ import annotations

import argparse
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.lib.archive import archive_inputs, archive_path, build_archive, inputs_digest
from scripts.lib.console import CommandError
from scripts.lib.deployment import Golden, read_golden
from scripts.lib.management import describes
from scripts.lib.model_folder import read_model_folder
from scripts.lib.options import version_number
from scripts.lib.packed import MANIFEST, packed_model
from scripts.lib.paths import BUNDLED
from scripts.lib.server import worker_error


def test_a_card_is_known_without_its_nulls() -> None:
    """TorchServe's answer leaves them out: a model that had no teacher was taken for another."""
    card = replace(read_model_folder(BUNDLED).card, training={"teacher": None, "split_seed": 0})
    told = card.to_dict() | {"training": {"split_seed": 0}}
    assert describes(told, card)
    assert not describes(told | {"training": {"split_seed": 1}}, card)
    assert not describes(told | {"name": "another"}, card)


def test_golden_pictures_are_read_beside_their_file(tmp_path: Path) -> None:
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "a, b.jpg").touch()
    file = tmp_path / "golden.csv"
    file.write_text('path,label,probability\n"dogs/a, b.jpg",Samoyed,0.9\n', encoding="utf-8")
    assert read_golden(file) == [Golden(tmp_path / "dogs" / "a, b.jpg", "Samoyed", 0.9)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"begins with nothing; expected the columns path,label,probability"),
        ("path,label\n", r"begins with path,label; expected the columns path,label,probability"),
        ("path,label,probability\n", r"lists no picture; a version isn't deployed unchecked"),
        ("path,label,probability\nnone.jpg,Samoyed,0.9\n", r"line 2: there is no picture .*none\.jpg"),
        ("path,label,probability\na.jpg,Samoyed,2\n", r"line 2: .*from 0 to 1, found 'Samoyed' and '2'"),
        ("path,label,probability\na.jpg,,0.5\n", r"line 2: expected a label .*found '' and '0.5'"),
        ("path,label,probability\na.jpg,Samoyed\n", r"line 2: .*found 'Samoyed' and None"),
    ],
    ids=["empty", "columns", "no-picture", "missing", "probability", "label", "short"],
)
def test_wrong_golden_pictures_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jpg").touch()
    file = tmp_path / "golden.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CommandError, match=message):
        read_golden(file)


def test_no_golden_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"can't read the golden pictures .*none\.csv: No such file"):
        read_golden(tmp_path / "none.csv")


def test_an_archive_tells_its_version_and_card(tmp_path: Path) -> None:
    model = read_model_folder(BUNDLED)
    files = archive_inputs(model, model.card, {})
    archive = archive_path(tmp_path, "2.0")
    archive.write_bytes(build_archive(files, "2.0"))
    assert archive.name == "densenet-2.0.mar"
    assert archive_path(tmp_path).name == "densenet.mar"
    assert packed_model(archive) == ("2.0", model.card)
    assert inputs_digest(files) != inputs_digest(files, "2.0")
    with pytest.raises(CommandError, match=r"can't read the archive .*none\.mar: No such file"):
        packed_model(tmp_path / "none.mar")
    with zipfile.ZipFile(tmp_path / "other.mar", "w") as other:
        other.writestr(MANIFEST, json.dumps({"model": {"modelVersion": "1.0"}}))
    with pytest.raises(CommandError, match=r"other\.mar is no archive of this project \(KeyError\)"):
        packed_model(tmp_path / "other.mar")


def test_versions_are_numbers() -> None:
    assert version_number("2026.11.1") == "2026.11.1"
    for text in ("", "2.", "v2", "2.0/../x", "default"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no version, expected numbers with points"):
            version_number(text)


def test_a_dead_worker_of_another_version_is_not_meant(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    line = "… [INFO ] W-9000-densenet_{}-stdout MODEL_LOG - {}\n"
    dead = ("Backend worker process died.", "Traceback (most recent call last):", "ValueError: no")
    log.write_text("".join(line.format("1.0", text) for text in dead), encoding="utf-8")
    assert worker_error(log) == "ValueError: no"
    assert worker_error(log, version="2.0") == ""
    assert worker_error(log, since=log.stat().st_size) == ""
    assert worker_error(log, since=log.stat().st_size + 1) == "ValueError: no", "the log was rotated"
    with log.open("a", encoding="utf-8") as file:
        file.writelines(line.format("2.0", text.replace("no", "two")) for text in dead)
    assert worker_error(log, version="2.0") == "ValueError: two"
