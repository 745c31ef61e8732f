"""The bundled model's recipe: it runs from end to end, and it is the one on the card."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from handler.card import ARCHITECTURES
from handler.network import build_network
from scripts import train
from scripts.lib.model_folder import read_model_folder
from scripts.lib.paths import BUNDLED
from scripts.reproduce import stages
from tests.support.pictures.scenes import write_scenes
from tests.support.servers.running import command

pytestmark = pytest.mark.slow


def test_the_card_names_the_recipe() -> None:
    program, script, *recorded = shlex.split(read_model_folder(BUNDLED).card.training["command"])
    assert (program, script) == ("python3", "scripts/train.py")
    recipe = list(stages(Path("data"), "imagenet", Path("runs")).values())[-1]
    parse = train.build_parser().parse_args
    places = {"data", "labels", "start", "teacher", "out", "about", "licence"}  # differ from machine to machine
    wanted, found = ({k: v for k, v in vars(parse(a)).items() if k not in places} for a in (recipe, recorded))
    assert found == wanted


def test_four_models_from_one_command(tmp_path: Path) -> None:
    scenes, data = write_scenes(tmp_path / "scenes", per_class=28), tmp_path / "data"
    for folder, scene in (("oxford-pets/Abyssinian", "chelsea"), ("imagewoof/dingo", "grace_hopper")):
        (data / folder).parent.mkdir(parents=True)
        (scenes / scene).rename(data / folder)
    (scenes / "flower").rename(data / "other")
    # real features don't matter to what is tested here, and would have to be downloaded
    backbone = build_network(ARCHITECTURES["densenet169"], 2)
    state = {name: t for name, t in backbone.state_dict().items() if not name.startswith("classifier")}
    torch.save(state, tmp_path / "backbone.pt")

    reproduce = ("reproduce.py", str(data), "--backbone", str(tmp_path / "backbone.pt"), "--quick")
    environment = {"DENSENET_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "runs"
    first = command(*reproduce, "--out", str(out), **environment)
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith(f"done: {out}/bundled is version 2\n")
    model = read_model_folder(out / "bundled")
    assert model.labels == ["Abyssinian", "Dingo", "neither cat nor dog"]
    assert model.card.training["teacher"] == "teacher"
    assert json.loads((out / "first" / "card.json").read_text(encoding="utf-8"))["training"]["start"] == "none"

    again = command(*reproduce, "--out", str(out), **environment)
    assert again.stdout.count(" is there\n") == 4

    next_version = command(*reproduce, "--out", str(out), "--version", "3", **environment)
    assert next_version.returncode == 0, next_version.stderr
    assert f"{out}/teacher is there\n" in next_version.stdout
    assert next_version.stdout.endswith(f"done: {out}/patient is version 3\n")
    assert read_model_folder(out / "patient").card.training["start"] == "none"

    (out / "bundled" / "card.json").unlink()  # killed before the card was written: its epoch isn't trained again
    resumed = command(*reproduce, "--out", str(out), **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch 1 of 1" in resumed.stdout
    assert read_model_folder(out / "bundled").card.weights_sha256 == model.card.weights_sha256


def test_a_failed_stage_ends_it(tmp_path: Path) -> None:
    result = command("reproduce.py", str(tmp_path / "nothing"), "--out", str(tmp_path / "runs"))
    assert result.returncode == 1
    assert "no folder at" in result.stderr
    assert result.stderr.endswith("teacher isn't complete; the same command goes on from here\n")
