"""Training: data found and split cleanly, a resumed training equal to an uninterrupted one, distillation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handler.card import Architecture
from handler.network import build_network
from handler.preprocessing import Preprocessing
from scripts import train
from scripts.lib import paths
from scripts.lib.console import CommandError
from scripts.lib.model_folder import CARD, read_model_folder
from scripts.lib.training import session
from scripts.lib.training.dataset import (
    Picture,
    Split,
    check_pictures,
    class_counts,
    find_pictures,
    near_duplicate_groups,
    split_pictures,
)
from scripts.lib.training.features import backbone_digest, cached_features
from scripts.lib.training.trainer import Recipe, Trainer, predict_logits, train_classifier
from tests.scenes import write_scenes

CPU = torch.device("cpu")
TINY = Architecture("compact", 8, (2, 2), 16)
PREPROCESSING = Preprocessing(56, 48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RECIPE = Recipe(
    epochs=3,
    batch=8,
    rate=0.1,
    warmup=1,
    weight_decay=5e-5,
    label_smoothing=0.05,
    ema=0.9,
    train_crop=(32, 48),
    min_scale=0.5,
    seed=7,
    distill=0.5,
    distill_temperature=2,
    feature_weight=1,
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Views of three photographs."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "views")


@pytest.fixture(scope="module")
def pictures(scenes: Path) -> list[Picture]:
    """The checked pictures of ``scenes``."""
    return check_pictures(find_pictures([str(scenes)]))


def targets_of(pictures: list[Picture]) -> dict[str, int]:
    """Label to index."""
    return {label: index for index, label in enumerate(sorted({p.label for p in pictures}))}


# --- data ------------------------------------------------------------------------------------------


def test_sources_are_put_together(scenes: Path, tmp_path: Path) -> None:
    other = tmp_path / "more"
    shutil.copytree(scenes / "flower", other)
    found = find_pictures([str(scenes), f"plants={other}"], {n: n.upper() for n in [*folders(scenes), "plants"]})
    assert class_counts(found) == {"CHELSEA": 24, "FLOWER": 24, "GRACE_HOPPER": 24, "PLANTS": 24}
    assert {p.source for p in found} == {"views", "more"}


def folders(path: Path) -> list[str]:
    """The names of the folders in ``path``."""
    return [d.name for d in path.iterdir()]


def remove(path: Path) -> Path:
    """The path, with nothing there."""
    shutil.rmtree(path)
    return path


def add_folder(path: Path) -> Path:
    """The path, with an empty class in it."""
    (path / "empty").mkdir()
    return path


WRONG_DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (remove, "no folder at .*; expected a folder with one folder of pictures per class"),
    "no-classes": (lambda p: p / "flower", "has no class folders; expected one folder of pictures per class"),
    "empty-class": (add_folder, "the class folder .*empty holds no pictures"),
    "one-class": (
        lambda p: remove(p / "flower") and remove(p / "chelsea") and p,
        "found one class only \\('grace_hopper'\\)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WRONG_DATA.values(), ids=WRONG_DATA.keys())
def test_wrong_folders_are_named(scenes: Path, tmp_path: Path, damage: Callable[[Path], Path], message: str) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    with pytest.raises(CommandError, match=message):
        find_pictures([str(damage(tmp_path / "data"))])


def test_a_class_without_a_label_is_named(scenes: Path) -> None:
    with pytest.raises(CommandError, match=r"no label for the class folder .*grace_hopper"):
        find_pictures([str(scenes)], {"flower": "f", "chelsea": "c"})


def test_a_broken_picture_is_left_out_and_named(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    broken = data / "flower" / "000.png"
    broken.write_bytes(broken.read_bytes()[:-2000])
    checked = check_pictures(find_pictures([str(data)]))
    assert class_counts(checked)["flower"] == 23
    warnings = capsys.readouterr().err
    assert f"warning: left out {broken}: received a PNG picture of 72 × 72 px that is broken" in warnings
    assert "1 of 72 pictures can't be read and are left out" in warnings


def test_a_class_of_broken_pictures_is_refused(scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for number, file in enumerate(sorted((data / "flower").iterdir())):
        if number:
            file.write_bytes(b"broken")
    with pytest.raises(CommandError, match="the class 'flower' has 1 readable pictures; it needs at least 2"):
        check_pictures(find_pictures([str(data)]))


def test_near_duplicates_share_a_group(scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("flower", "chelsea"):
        (data / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(scenes / name / f"{number:03}.png", data / name)
    with Image.open(data / "flower" / "000.png") as image:
        image.convert("RGB").save(data / "flower" / "again.jpg", quality=60)
    checked = check_pictures(find_pictures([str(data)]))
    groups = dict(zip([p.path.name + p.label for p in checked], near_duplicate_groups([p.dhash for p in checked])))
    assert groups["again.jpgflower"] == groups["000.pngflower"]
    assert len(set(groups.values())) == 4


def test_near_duplicates_are_linked_by_chains() -> None:
    hashes = [0b0, 0b1111, 0b11111111, 1 << 60 | 1 << 50 | 1 << 40 | 1 << 30 | 1 << 20]
    groups = near_duplicate_groups(hashes, max_bits=4)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_split_is_stratified_disjoint_and_complete(pictures: list[Picture]) -> None:
    split = split_pictures(pictures, val=0.125, test=0.25, seed=0)
    sides = [{p.digest for p in side} for side in (split.train, split.val, split.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 72
    assert class_counts(split.test) == {"chelsea": 6, "flower": 6, "grace_hopper": 6}
    assert class_counts(split.val) == {"chelsea": 3, "flower": 3, "grace_hopper": 3}


def test_near_duplicates_stay_on_one_side(pictures: list[Picture]) -> None:
    twins = [replace(p, digest=f"{p.digest}-twin") for p in pictures]
    for seed in range(3):
        split = split_pictures([*pictures, *twins], val=0.2, test=0.2, seed=seed)
        for side in (split.train, split.val, split.test):
            digests = {p.digest for p in side}
            assert {d.removesuffix("-twin") for d in digests} == {d for d in digests if not d.endswith("-twin")}


def test_split_depends_on_content_and_seed_alone(pictures: list[Picture]) -> None:
    moved = [replace(p, path=Path("elsewhere") / p.path.name) for p in reversed(pictures)]
    splits = [split_pictures(p, 0.2, 0.2, seed) for p, seed in ((pictures, 0), (moved, 0), (pictures, 1))]
    digests = [{p.digest for p in split.test} for split in splits]
    assert digests[0] == digests[1] != digests[2]


# --- recipe ----------------------------------------------------------------------------------------


def test_rate_rises_linearly_then_falls_to_zero() -> None:
    recipe = replace(RECIPE, epochs=10, warmup=2, rate=0.4)
    assert recipe.rate_at(0) == 0
    assert recipe.rate_at(1) == pytest.approx(0.2)
    assert recipe.rate_at(2) == pytest.approx(0.4)
    assert recipe.rate_at(6) == pytest.approx(0.2)
    assert recipe.rate_at(10) == pytest.approx(0, abs=1e-12)


def test_training_crop_grows_in_steps_of_16() -> None:
    recipe = replace(RECIPE, epochs=5, train_crop=(64, 128))
    assert [recipe.crop_at(epoch) for epoch in range(5)] == [64, 80, 96, 112, 128]


# --- epochs ----------------------------------------------------------------------------------------


def trainer(split: Split, folder: Path, recipe: Recipe = RECIPE, teach: bool = False) -> Trainer:
    """A trainer of a tiny network."""
    torch.manual_seed(0)
    everything = [*split.train, *split.val, *split.test]
    targets = targets_of(everything)
    teacher = None
    if teach:
        generator = torch.Generator().manual_seed(1)
        wanted = torch.tensor([targets[p.label] for p in split.train])
        logits = torch.nn.functional.one_hot(wanted, len(targets)).float() * 4  # a teacher that is right
        teacher = logits, torch.rand(len(split.train), 5, generator=generator)
    network = build_network(TINY, len(targets))
    return Trainer(network, PREPROCESSING, split.train, split.val, targets, recipe, folder, teacher)


@pytest.mark.parametrize("teach", [False, True], ids=["plain", "distilled"])
def test_a_resumed_training_is_the_uninterrupted_one(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teach: bool
) -> None:
    split = split_pictures(pictures, 0.1, 0.1, seed=0)
    (tmp_path / "straight").mkdir()
    (tmp_path / "broken").mkdir()
    straight = trainer(split, tmp_path / "straight", teach=teach).run()

    train_epoch = Trainer._train_epoch

    def killed_in_the_last_epoch(self: Trainer, epoch: int) -> float:
        if epoch == RECIPE.epochs - 1:
            raise KeyboardInterrupt
        return train_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", killed_in_the_last_epoch)
        with pytest.raises(KeyboardInterrupt):
            trainer(split, tmp_path / "broken", teach=teach).run()
    again = trainer(split, tmp_path / "broken", teach=teach)
    again.resume()
    assert again.epoch == RECIPE.epochs - 1
    resumed = again.run()
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    rows = [
        list(csv.DictReader((tmp_path / folder / "metrics.csv").read_text(encoding="utf-8").splitlines()))
        for folder in ("straight", "broken")
    ]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == ["1", "2", "3"]


def test_resume_refuses_another_recipe(pictures: list[Picture], tmp_path: Path) -> None:
    split = split_pictures(pictures, 0.1, 0.1, seed=0)
    first = trainer(split, tmp_path)
    first.save()
    with pytest.raises(CommandError, match=r"made with another --rate \(0.1, now 0.2\); give the same flags"):
        trainer(split, tmp_path, replace(RECIPE, rate=0.2)).resume()
    with pytest.raises(CommandError, match="nothing to resume: no checkpoint at"):
        trainer(split, tmp_path / "elsewhere").resume()


def test_too_few_pictures_for_a_batch(pictures: list[Picture], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="3 training pictures are fewer than one batch of 8"):
        trainer(Split(pictures[:3], [], []), tmp_path)


def test_features_are_computed_once(pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_network(TINY, 3).eval()
    some = pictures[::6]
    first = cached_features(network, PREPROCESSING, some, tmp_path)
    monkeypatch.setattr("scripts.lib.training.features.exact_batches", None)  # a call would fail
    second = cached_features(network, PREPROCESSING, list(reversed(some)), tmp_path)
    assert torch.equal(first, second.flip(0))
    digest = backbone_digest(network)
    with torch.no_grad():
        network.classifier.weight.zero_()
    assert backbone_digest(network) == digest
    with torch.no_grad():
        network.features.conv0.weight.zero_()
    assert backbone_digest(network) != digest


def test_a_linear_classifier_separates_what_is_separable() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(300) % 3
    features = torch.randn(300, 6, generator=generator) + 3 * torch.nn.functional.one_hot(targets, 6)
    classifier = train_classifier(features * 50 + 7, targets, 3, steps=150)
    right = classifier(features * 50 + 7).argmax(dim=1) == targets
    assert right.float().mean() > 0.9


# --- the command -----------------------------------------------------------------------------------


def run_train(*arguments: str) -> Path:
    """``train.py`` in this process; returns --out."""
    args = train.build_parser().parse_args(arguments)
    assert train.main(args) == 0
    out: Path = args.out
    return out


FAST = ["--growth-rate", "8", "--blocks", "2,2", "--init-features", "16", "--crop", "48", "--batch", "8"]


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained from scratch on the views."""
    out = tmp_path_factory.mktemp("runs") / "views"
    return run_train(
        str(scenes),
        *("--out", str(out), *FAST, "--epochs", "10", "--ema", "0.9", "--test", "0.25", "--half"),
        *("--dataset", "views of three photographs", "--licence", "none"),
    )


def test_training_beats_chance_by_far_and_leaves_a_model(trained: Path) -> None:
    model = read_model_folder(trained)
    assert model.labels == ["chelsea", "flower", "grace_hopper"]
    card = model.card
    assert card.accuracy["test"]["pictures"] == 18
    assert card.accuracy["test"]["top1"] >= 0.75, "chance is 0.33"
    assert card.dataset == "views of three photographs"
    assert card.training["pictures"]["test"] == 18
    assert card.training["start"] == "none"
    assert 0.25 <= card.temperature <= 4
    assert {p.name for p in trained.iterdir()} == {
        *("weights.safetensors", "index_to_name.json", "card.json", "metrics.csv", "checkpoint.pt", "pictures.json")
    }


def test_training_does_not_overwrite_a_training(trained: Path, scenes: Path) -> None:
    with pytest.raises(CommandError, match="holds a training already; continue it with --resume"):
        run_train(str(scenes), "--out", str(trained), *FAST)


def test_classifier_on_the_features_of_another_model(
    trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CACHE", tmp_path / "cache")
    start = ["--start", str(trained / "weights.safetensors"), "--train", "classifier", "--test", "0.25"]
    out = run_train(str(scenes), "--out", str(tmp_path / "out"), *FAST, *start)
    card = read_model_folder(out).card
    assert card.accuracy["test"]["top1"] >= 0.75
    assert card.training["start"] == "weights.safetensors"
    assert tmp_path != paths.CACHE


def test_a_teacher_is_followed(trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CACHE", tmp_path / "cache")
    out = run_train(
        *(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--epochs", "1", "--teacher", str(trained)),
    )
    assert json.loads((out / CARD).read_text(encoding="utf-8"))["training"]["teacher"] == "views"


def test_a_teacher_of_other_classes_is_refused(trained: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"flower": "rose", "chelsea": "c", "grace_hopper": "g"}', encoding="utf-8")
    with pytest.raises(CommandError, match="has other labels than the data"):
        run_train(
            *(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--teacher", str(trained)),
            *("--labels", str(tmp_path / "labels.json")),
        )


def test_classifier_needs_trained_features(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--train classifier needs trained features"):
        run_train(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--train", "classifier")
    with pytest.raises(CommandError, match="no ImageNet weights for --arch compact"):
        run_train(str(scenes), "--out", str(tmp_path / "out2"), *FAST, "--start", "imagenet")


def test_predicted_logits_are_those_of_one_picture_at_a_time(pictures: list[Picture]) -> None:
    torch.manual_seed(0)
    network = build_network(TINY, 3).eval()
    paths_ = [p.path for p in pictures[:5]]
    together = predict_logits(network, paths_, PREPROCESSING, CPU)
    alone = torch.cat([predict_logits(network, [path], PREPROCESSING, CPU) for path in paths_])
    assert np.allclose(together.numpy(), alone.numpy(), atol=1e-4)
