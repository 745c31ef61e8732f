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

from handler.card import ARCHITECTURES, Architecture
from handler.network import build_network, read_weights
from handler.preprocessing import Preprocessing
from scripts import train
from scripts.lib import paths
from scripts.lib.console import CommandError
from scripts.lib.model_folder import CARD, read_model_folder
from scripts.lib.training import session
from scripts.lib.training.dataset import (
    OXFORD_PETS,
    Picture,
    Split,
    check_pictures,
    class_counts,
    find_pictures,
    near_duplicate_groups,
    oxford_pets,
    split_pictures,
)
from scripts.lib.training.distillation import LiveTeacher, Teacher, TeacherMaps, resized, teacher_maps
from scripts.lib.training.features import FrozenNetwork, backbone_digest, cached_features, maps_and_logits
from scripts.lib.training.trainer import (
    AugmentedPictures,
    Recipe,
    Trainer,
    blend,
    epoch_order,
    predict_logits,
    train_classifier,
)
from tests.support.pictures.scenes import write_scenes

CPU = torch.device("cpu")
TINY = Architecture("compact", 8, (2, 2), 16)
TINY_FEATURES = build_network(TINY, 3).classifier.in_features
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
    balance=0.5,
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


def write_pets(root: Path, scenes: Path) -> None:
    """A small Oxford-IIIT Pet as torchvision leaves it: pictures in one folder, classes in two lists."""
    images, annotations = root / OXFORD_PETS.folder / "images", root / OXFORD_PETS.folder / "annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for target, (name, folder) in enumerate((("Maine_Coon", "chelsea"), ("pug", "grace_hopper")), 1):
        for number, file in enumerate(sorted((scenes / folder).iterdir())):
            with Image.open(file) as picture:
                picture.save(images / f"{name}_{number}.jpg")
            lines["trainval" if number % 2 else "test"].append(f"{name}_{number} {target} {target} 1")
    for part, text in lines.items():
        (annotations / f"{part}.txt").write_text("\n".join(text) + "\n", encoding="utf-8")


def test_oxford_pets_come_with_their_labels(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pets(tmp_path / "datasets", scenes)
    pets = oxford_pets(tmp_path / "datasets")
    assert class_counts(pets) == {"Maine Coon": 24, "Pug": 24}
    assert {p.source for p in pets} == {"oxford-pets"}
    labelled = oxford_pets(tmp_path / "datasets", {"Maine_Coon": "cat", "pug": "dog"})
    assert class_counts(labelled) == {"cat": 24, "dog": 24}
    with pytest.raises(CommandError, match="no label for the class pug of Oxford-IIIT Pet"):
        oxford_pets(tmp_path / "datasets", {"Maine_Coon": "cat"})

    monkeypatch.setattr(session, "CACHE", tmp_path)
    out = run_train("--dataset", "oxford-pets", "--out", str(tmp_path / "out"), *FAST, "--epochs", "1")
    card = read_model_folder(out).card
    assert card.dataset == "Oxford-IIIT Pet (CC BY-SA 4.0)"
    assert card.num_classes == 2


def test_oxford_pets_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import OxfordIIITPet

    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", (("http://127.0.0.1:9/images.tar.gz", "0" * 32),))
    with pytest.raises(CommandError, match=r"Oxford-IIIT Pet can't be downloaded: .*refused.*; give the pictures"):
        oxford_pets(tmp_path)


def test_a_command_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"no pictures: give a folder .* or --dataset oxford-pets"):
        run_train("--out", str(tmp_path / "out"))


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


@pytest.mark.parametrize(
    ("first_and_last", "crops"),
    [
        ((64, 128), [64, 64, 96, 128, 128]),
        ((80, 112), [80, 96, 96, 96, 112]),
        ((48, 48), [48] * 5),
    ],
)
def test_training_crop_grows_in_steps_of_32(first_and_last: tuple[int, int], crops: list[int]) -> None:
    recipe = replace(RECIPE, epochs=5, train_crop=first_and_last)
    assert [recipe.crop_at(epoch) for epoch in range(5)] == crops


@pytest.mark.parametrize(("balance", "shown"), [(0, [400, 100, 16]), (0.5, [304, 151, 61]), (1, [172, 172, 172])])
def test_classes_are_balanced(balance: float, shown: list[int]) -> None:
    targets = np.repeat([0, 1, 2], [400, 100, 16])
    order = epoch_order(targets, balance, seed=3, epoch=1)
    assert len(order) == len(targets)
    assert np.bincount(targets[order]) == pytest.approx(shown, abs=1)
    for target in range(3):
        times = np.bincount(order, minlength=len(targets))[targets == target]
        assert times.max() - times.min() <= 1
    assert not np.array_equal(order, epoch_order(targets, balance, seed=3, epoch=2))
    assert np.array_equal(order, epoch_order(targets, balance, seed=3, epoch=1))


def test_an_epoch_may_show_a_part_of_the_pictures() -> None:
    targets = np.repeat([0, 1, 2], [400, 100, 16])
    parts = [epoch_order(targets, 0.5, seed=3, epoch=epoch, size=129) for epoch in range(12)]
    for part in parts:
        assert np.bincount(targets[part]) == pytest.approx([76, 38, 15], abs=1)
        assert len(set(part.tolist())) == 129
    assert set(np.concatenate(parts).tolist()) >= set(range(400, 516)), "every picture of the small classes in turn"


def test_blended_pictures_and_labels_go_together() -> None:
    # every pixel of picture i is i, and so is its label's expectation
    numbers = torch.arange(64.0)
    images, labels = numbers[:, None, None, None].expand(-1, 3, 4, 4), torch.eye(64)
    mixed, mixed_labels = blend(images, labels, 0.5, torch.Generator().manual_seed(0))
    assert torch.allclose(mixed_labels @ numbers, mixed[:, 0, 0, 0], atol=1e-4)
    assert torch.allclose(mixed_labels.sum(dim=1), torch.ones(64))
    untouched = int((mixed[:, 0, 0, 0] == numbers).sum())
    assert 20 <= untouched <= 44, "half of them"
    again, _ = blend(images, labels, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(mixed, again)
    assert torch.equal(blend(images, labels, 0.0, torch.Generator())[0], images)


def test_a_view_says_what_it_shows(tmp_path: Path) -> None:
    # red tells the column, green the row: the view's corners must be where its box says
    columns, rows = np.meshgrid(np.arange(200), np.arange(100))
    gradient = np.stack([columns, rows * 2, np.zeros_like(rows)], axis=2).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "gradient.png")
    picture = Picture(tmp_path / "gradient.png", "a", "b")
    views = AugmentedPictures([picture], np.zeros(20, dtype=int), replace(RECIPE, min_scale=0.2), 0)
    views.colour = lambda image: image
    mirrored = 0
    for number in range(20):
        array, index, box = views[number]
        assert index == 0
        left, top, right, bottom = box.tolist()
        mirrored += left > right
        inset = 0.5 / array.shape[0]  # pixels are read at their middle
        for x, y, column, row in ((inset, inset, 0, 0), (1 - inset, 1 - inset, -1, -1)):
            red, green, _ = array[row, column].tolist()
            assert red == pytest.approx((left + (right - left) * x) * 200 - 0.5, abs=2)
            assert green == pytest.approx(((top + (bottom - top) * y) * 100 - 0.5) * 2, abs=3)
    assert 0 < mirrored < 20
    assert not torch.equal(views[0][0], views[1][0])


# --- distillation ----------------------------------------------------------------------------------


def test_teacher_targets_of_a_crop_are_those_below_it() -> None:
    # features tell the place: column in the first channel, row in the second
    places = torch.arange(8, dtype=torch.float16)
    features = torch.stack([places[None, :].expand(8, 8), places[:, None].expand(8, 8)])[None]  # (1, 2, 8, 8)
    maps = TeacherMaps(features, features * 10)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 0.5], [1.0, 0.5, 0.5, 1.0]])
    targets, logits = maps.crops(torch.zeros(3, dtype=torch.long), boxes, 2)
    assert targets.shape == (3, 2, 2, 2)
    whole, corner, mirrored = targets
    assert whole[0].tolist() == [[1.5, 5.5]] * 2  # left and right half: means of 0 to 3 and of 4 to 7
    assert corner[0].tolist() == [[4.5, 6.5]] * 2
    assert corner[1].tolist() == [[0.5, 0.5], [2.5, 2.5]]
    assert mirrored[0].tolist() == [[6.5, 4.5]] * 2
    assert mirrored[1].tolist() == [[4.5, 4.5], [6.5, 6.5]]
    assert logits[1].tolist() == [55.0, 15.0]
    assert maps.whole().tolist() == [[35.0, 35.0]]


def test_teacher_maps_are_computed_once_and_keep_the_answer(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = build_network(TINY, 3).eval()
    some = pictures[::6]
    first = teacher_maps(network, PREPROCESSING, some, tmp_path)
    # all components are kept of so few features: the reduced map gives the network's own logits
    squares = [np.array(Image.open(p.path).resize((48, 48), Image.Resampling.BILINEAR)) for p in some]
    with torch.inference_mode():
        logits = network(PREPROCESSING.to_tensor(np.stack(squares)))
    assert torch.allclose(first.whole(), logits, atol=0.05)
    monkeypatch.setattr("scripts.lib.training.features.DataLoader", None)  # a call would fail
    second = teacher_maps(network, PREPROCESSING, list(reversed(some)), tmp_path)
    assert torch.equal(first.features, second.features.flip(0))
    assert torch.equal(first.logits, second.logits.flip(0))


def test_a_live_teacher_answers_for_what_the_student_sees(pictures: list[Picture], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(TINY, 3).eval()
    some = pictures[::6]
    teacher = LiveTeacher(network, PREPROCESSING, some, 48, tmp_path)
    squares = [np.array(Image.open(p.path).resize((64, 64), Image.Resampling.BILINEAR)) for p in some]
    images = PREPROCESSING.to_tensor(np.stack(squares))
    blended, _ = blend(images, torch.eye(len(some)), 1.0, torch.Generator().manual_seed(0))
    nowhere = torch.empty(0)
    features, logits = teacher.targets(blended, nowhere, nowhere, 6)
    with torch.inference_mode():
        maps, wanted = maps_and_logits(network, resized(blended, 48))
    assert torch.allclose(logits, wanted, atol=0.05)
    assert features.shape == (len(some), teacher.depth, 6, 6)
    # all components are kept of so few features: they rebuild the teacher's maps
    rebuilt = torch.einsum("ndhw,df->nfhw", features, teacher.components) + teacher.mean[:, None, None]
    assert torch.allclose(rebuilt, maps, atol=0.05)
    assert teacher.targets(blended, nowhere, nowhere, 3)[0].shape == (len(some), teacher.depth, 3, 3)


def test_a_frozen_network_answers_with_and_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_network(TINY, 3)
    images = torch.randn(5, 3, 48, 64)
    compiled = FrozenNetwork(network)(images)
    monkeypatch.setattr("scripts.lib.training.features.has_openvino", lambda: False)
    eager = FrozenNetwork(network)(images)
    for one, other in zip(compiled, eager):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == torch.float32
        assert torch.allclose(one, other, atol=0.05)


# --- epochs ----------------------------------------------------------------------------------------


def trainer(split: Split, folder: Path, recipe: Recipe = RECIPE, teach: bool = False) -> Trainer:
    """A trainer of a tiny network; with a ``teacher_crop`` in the recipe, the teacher is a live one."""
    torch.manual_seed(0)
    everything = [*split.train, *split.val, *split.test]
    targets = targets_of(everything)
    teacher: Teacher | None = None
    if teach and recipe.teacher_crop:
        network = build_network(TINY, len(targets))
        teacher = LiveTeacher(network, PREPROCESSING, split.train, recipe.teacher_crop, folder.parent / "cache")
        torch.manual_seed(0)
    elif teach:
        generator = torch.Generator().manual_seed(1)
        wanted = torch.tensor([targets[p.label] for p in split.train])
        logits = torch.nn.functional.one_hot(wanted, len(targets)).half() * 4  # a teacher that is right
        features = torch.rand(len(split.train), 5, 3, 3, generator=generator).half()
        teacher = TeacherMaps(features, logits[:, :, None, None].expand(-1, -1, 3, 3))
    network = build_network(TINY, len(targets))
    return Trainer(network, PREPROCESSING, split.train, split.val, targets, recipe, folder, teacher)


CONSISTENT = replace(RECIPE, distill=1, mixup=0.5, teacher_crop=48, epoch_pictures=24)


@pytest.mark.parametrize(
    ("recipe", "teach"),
    [
        pytest.param(RECIPE, False, id="plain"),
        pytest.param(RECIPE, True, id="distilled", marks=pytest.mark.slow),
        pytest.param(CONSISTENT, True, id="consistent", marks=pytest.mark.slow),
        pytest.param(replace(RECIPE, mixup=1), False, id="mixup", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, teach: bool
) -> None:
    split = split_pictures(pictures, 0.1, 0.1, seed=0)
    (tmp_path / "straight").mkdir()
    (tmp_path / "broken").mkdir()
    straight = trainer(split, tmp_path / "straight", recipe, teach).run()

    train_epoch = Trainer._train_epoch

    def killed_in_the_last_epoch(self: Trainer, epoch: int) -> float:
        if epoch == RECIPE.epochs - 1:
            raise KeyboardInterrupt
        return train_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", killed_in_the_last_epoch)
        with pytest.raises(KeyboardInterrupt):
            trainer(split, tmp_path / "broken", recipe, teach).run()
    again = trainer(split, tmp_path / "broken", recipe, teach)
    again.resume()
    assert again.epoch == RECIPE.epochs - 1
    resumed = again.run()
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    rows = [
        list(csv.DictReader((tmp_path / folder / "metrics.csv").read_text(encoding="utf-8").splitlines()))
        for folder in ("straight", "broken")
    ]
    for row in rows[0] + rows[1]:
        assert float(row.pop("seconds")) > 0
    assert rows[0] == rows[1]
    assert [row["crop"] for row in rows[0]] == ["32", "32", "48"]
    assert [row["epoch"] for row in rows[0]] == ["1", "2", "3"]


def test_resume_refuses_another_recipe(pictures: list[Picture], tmp_path: Path) -> None:
    split = split_pictures(pictures, 0.1, 0.1, seed=0)
    first = trainer(split, tmp_path)
    first.save()
    with pytest.raises(CommandError, match=r"made with another --rate \(0.1, now 0.2\); give the same flags"):
        trainer(split, tmp_path, replace(RECIPE, rate=0.2)).resume()
    with pytest.raises(CommandError, match="nothing to resume: no checkpoint at"):
        trainer(split, tmp_path / "elsewhere").resume()


def test_without_hard_labels_the_teacher_alone_is_followed(pictures: list[Picture], tmp_path: Path) -> None:
    split = split_pictures(pictures, 0.1, 0.1, seed=0)
    generator = torch.Generator().manual_seed(0)
    maps, logits = torch.rand(6, TINY_FEATURES, 3, 3, generator=generator), torch.randn(6, 3, generator=generator)
    labels = torch.eye(3).repeat(2, 1)
    for distill, same in ((1.0, True), (0.5, False)):
        one = trainer(split, tmp_path, replace(CONSISTENT, distill=distill), teach=True)
        taught = torch.rand(6, one.teacher.depth if one.teacher else 0, 3, 3), logits.flip(0)
        losses = [float(one._loss(maps, logits, wanted, taught).detach()) for wanted in (labels, labels.flip(1))]
        assert (losses[0] == losses[1]) == same


def test_mixup_needs_a_teacher_that_sees_it(pictures: list[Picture], tmp_path: Path) -> None:
    split = split_pictures(pictures, 0.1, 0.1, seed=0)
    with pytest.raises(CommandError, match="the teacher saw them unblended; give --teacher-crop PX too"):
        trainer(split, tmp_path, replace(RECIPE, mixup=0.5), teach=True)
    with pytest.raises(CommandError, match="--epoch-pictures 7 is less than one batch of 8; raise it"):
        trainer(split, tmp_path, replace(RECIPE, epoch_pictures=7))


def test_too_few_pictures_for_a_batch(pictures: list[Picture], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="3 training pictures are fewer than one batch of 8"):
        trainer(Split(pictures[:3], [], []), tmp_path)


def test_features_are_computed_once(pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_network(TINY, 3).eval()
    some = pictures[::6]
    first = cached_features(network, PREPROCESSING, some, tmp_path)
    monkeypatch.setattr("scripts.lib.training.features.DataLoader", None)  # a call would fail
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
    classifier, history = train_classifier(features * 50 + 7, targets, 3, steps=150)
    right = classifier(features * 50 + 7).argmax(dim=1) == targets
    assert right.float().mean() > 0.9
    assert [row["epoch"] for row in history] == list(range(1, 11))
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_classifier_follows_a_teacher_against_the_labels() -> None:
    targets = torch.arange(300) % 3
    features = torch.eye(3)[targets] + 0.01
    teacher = torch.eye(3)[(targets + 1) % 3] * 20  # says the next class, surely
    classifier, _ = train_classifier(features, targets, 3, teacher=teacher, distill=0.9, steps=100)
    assert torch.equal(classifier(features).argmax(dim=1), (targets + 1) % 3)


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
        *("--about", "views of three photographs", "--licence", "none"),
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
        *("weights.safetensors", "index_to_name.json", "card.json", "metrics.csv", "checkpoint.pt", "pictures.json"),
        "report.html",
    }


def test_resume_refuses_other_data(trained: Path, scenes: Path, tmp_path: Path) -> None:
    """What was trained on would be in the test set."""
    out = shutil.copytree(trained, tmp_path / "out")
    resume = ("--out", str(out), *FAST, "--epochs", "10", "--ema", "0.9", "--resume")
    with pytest.raises(CommandError, match=r"made with another --test \(0.25, now 0.4\); give the same flags"):
        run_train(str(scenes), *resume, "--test", "0.4")
    changed = next(path for path in sorted(scenes.rglob("*.png")))
    before = changed.read_bytes()
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    try:
        with pytest.raises(CommandError, match=r"the pictures aren't those that the checkpoint .* was trained with"):
            run_train(str(scenes), *resume, "--test", "0.25")
    finally:
        changed.write_bytes(before)


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
    metrics = list(csv.DictReader((out / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert len(metrics) == 10
    assert float(metrics[-1]["val_top1"]) > 0.5
    assert tmp_path != paths.CACHE


def test_fine_tuning_starts_from_the_weights_of_another_model(trained: Path, scenes: Path, tmp_path: Path) -> None:
    out = run_train(
        *(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--epochs", "1", "--rate", "1e-6", "--test", "0.25"),
        *("--start", str(trained / "weights.safetensors"), "--warmup", "0"),
    )
    card = read_model_folder(out).card
    assert card.accuracy["test"]["top1"] >= 0.75, "one epoch at a tiny rate: it comes from the start"
    assert card.training["start"] == "weights.safetensors"


@pytest.mark.slow
def test_imagenet_weights_get_a_classifier_of_the_own_classes(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the network's shape, not its values, is what this is about: no ImageNet weights are at hand
    network = build_network(ARCHITECTURES["densenet121"], 1000)
    published = tmp_path / "densenet121.pth"
    torch.save(network.state_dict(), published)
    monkeypatch.setattr("scripts.lib.weights.imagenet_weights", lambda arch: published)
    monkeypatch.setattr(session, "CACHE", tmp_path / "cache")
    out = run_train(
        *(str(scenes), "--out", str(tmp_path / "out"), "--arch", "densenet121", "--start", "imagenet"),
        *("--train", "classifier", "--crop", "32", "--half"),
    )
    model = read_model_folder(out)
    assert model.card.architecture == ARCHITECTURES["densenet121"]
    assert model.card.num_classes == 3
    kept = read_weights(model.weights)["features.conv0.weight"]
    assert torch.equal(kept, network.features.conv0.weight.detach().half().float())


def test_a_teacher_is_followed(trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CACHE", tmp_path / "cache")
    out = run_train(
        *(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--epochs", "1", "--teacher", str(trained)),
    )
    assert json.loads((out / CARD).read_text(encoding="utf-8"))["training"]["teacher"] == "views"


def test_a_classifier_takes_a_teacher(
    trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CACHE", tmp_path / "cache")
    out = run_train(
        *(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--teacher", str(trained), "--train", "classifier"),
        *("--start", str(trained / "weights.safetensors"), "--test", "0.25"),
    )
    card = read_model_folder(out).card
    assert card.training["teacher"] == "views"
    assert card.accuracy["test"]["top1"] >= 0.75


def test_a_teacher_is_asked_about_every_view(
    trained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CACHE", tmp_path / "cache")
    live = ["--teacher", str(trained), "--teacher-crop", "64", "--mixup", "0.5", "--distill", "1"]
    out = run_train(str(scenes), "--out", str(tmp_path / "out"), *FAST, "--epochs", "1", "--warmup", "0", *live)
    assert read_model_folder(out).card.training["teacher"] == "views"
    with pytest.raises(CommandError, match="--teacher-crop is for --train all"):
        run_train(str(scenes), "--out", str(tmp_path / "out2"), *FAST, *live, "--train", "classifier")


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
