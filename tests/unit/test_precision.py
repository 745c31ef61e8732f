"""Runtime and precision are settled by measurement: taken where the accuracy stays, refused with figures where not."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handler.card import ModelCard
from handler.network import load_network
from handler.runtimes import has_bfloat16, load_runtime
from scripts.lib import conversion, packages, paths, precision
from scripts.lib.console import CommandError
from scripts.lib.conversion import convert, loaded
from scripts.lib.model_folder import ModelFolder, read_model_folder, write_model_folder
from scripts.lib.options import add_runtime_options
from scripts.lib.precision import Exact, Verification, Wanted, record, settle
from scripts.lib.tracing import CPU
from scripts.lib.training.dataset import Picture, find_pictures
from tests.support.machine.wheels import write_wheel
from tests.support.servers.worker import LABELS, write_tiny_model

GOOD = Verification("openvino", "bfloat16", 1000, 400, 0.8, 0.803, 0.99)
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor doesn't compute in bfloat16")


@pytest.fixture(scope="module")
def photos(tiny_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Pictures labelled as the tiny model labels them, so that it is right on all; every other one is large."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        side = 320 if number % 2 else 80
        pixels = Image.fromarray(noise.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side))
        (folder / str(number)).mkdir()
        pixels.save(folder / str(number) / "a.jpg", quality=95)
    pictures = [Picture(path=folder / str(n) / "a.jpg", label=LABELS[0], source="photos") for n in range(24)]
    labels = Exact(tiny_model, pictures).labels
    return [replace(p, label=tiny_model.labels[i]) for p, i in zip(pictures, labels)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and few pictures are enough."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(precision, "MIN_PICTURES", 20)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"pictures": 19}, ["measured on 19 pictures, at least 20 are needed"]),
        ({"precision": "float32", "pictures": 19}, []),
        ({"top1": 0.7999}, ["top-1 falls from 0.8030 to 0.7999, by more than 0.3 points"]),
        ({"agreement": 0.9899}, ["agrees with PyTorch in float32 on 98.99 % of the pictures, not 99 %"]),
        ({"top1": 0.5, "agreement": 0.5, "pictures": 1}, ["1 pictures", "falls from", "50.00 %"]),
    ],
    ids=["good", "few", "few-float32", "accuracy", "agreement", "all"],
)
def test_what_may_be_served(changes: Mapping[str, Any], expected: Sequence[str]) -> None:
    lacks = replace(GOOD, **changes).shortcomings()
    assert len(lacks) == len(expected)
    assert all(part in lack for part, lack in zip(expected, lacks))


def test_without_pictures_it_is_float32(tiny_model: ModelFolder) -> None:
    card, files = settle(tiny_model, Wanted())
    assert (card.runtime, card.precision, set(files)) == ("openvino", "float32", {"openvino.xml", "openvino.bin"})
    card, files = settle(tiny_model, Wanted("torch"))
    assert (card.runtime, card.precision, files) == ("torch", "float32", {})


@needs_bfloat16
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_bfloat16_is_measured_taken_and_remembered(
    tiny_model: ModelFolder, photos: Sequence[Picture], runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match=r"bfloat16 isn't good enough .* isn't known; give at least 20 labelled"):
        settle(tiny_model, Wanted(runtime, "bfloat16"))
    card, _ = settle(tiny_model, Wanted(runtime, pictures=photos))
    assert (card.runtime, card.precision) == (runtime, "bfloat16")
    served = card.accuracy["served"]
    assert (served["pictures"], served["reduced"], served["top1_exact"]) == (24, 12, 1.0)
    assert served["agreement"] == served["top1"] >= 0.99
    assert f"{runtime} bfloat16: top-1 1.0000, exact 1.0000, agreement 100.00 %, 24 pictures" in capsys.readouterr().out
    assert settle(tiny_model, Wanted(runtime))[0] == card, "auto remembers"
    assert settle(tiny_model, Wanted(runtime, "bfloat16"))[0] == card
    assert settle(tiny_model, Wanted(runtime, "float32"))[0].precision == "float32"


def test_a_measurement_on_the_card_counts(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(tiny_model, card=replace(tiny_model.card, accuracy={"served": asdict(GOOD)}))
    assert settle(model, Wanted())[0].precision == "bfloat16"
    assert settle(model, Wanted("torch"))[0].precision == "float32", "it was measured with OpenVINO"
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: False)
    assert settle(model, Wanted())[0].precision == "bfloat16", "the archive is for other machines, too"
    bad = replace(tiny_model.card, accuracy={"served": asdict(replace(GOOD, agreement=0.98))})
    assert settle(replace(tiny_model, card=bad), Wanted())[0].precision == "float32"


@needs_bfloat16
def test_what_costs_accuracy_is_refused(
    tiny_model: ModelFolder,
    photos: Sequence[Picture],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def worse(self: Exact, card: ModelCard, files: Any, calibration: Any = ()) -> Verification:
        return replace(GOOD, precision=card.precision, top1=0.5 if card.precision == "bfloat16" else 0.803, agreement=1)

    monkeypatch.setattr(Exact, "beside", worse)
    with pytest.raises(CommandError, match=r"bfloat16 isn't good enough .*top-1 falls from 0.8030 to 0.5000.*float32"):
        settle(tiny_model, Wanted("openvino", "bfloat16", photos))
    assert settle(tiny_model, Wanted("openvino", pictures=photos))[0].precision == "float32"
    assert "not bfloat16: top-1 falls from 0.8030 to 0.5000" in capsys.readouterr().out


def test_a_model_that_answers_otherwise_in_float32_is_refused(
    tiny_model: ModelFolder, photos: Sequence[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exact, "beside", lambda *_: replace(GOOD, precision="float32", agreement=0.9))
    with pytest.raises(CommandError, match=r"float32 isn't good enough .*90.00 % .*check --pictures and --labels"):
        settle(tiny_model, Wanted("openvino", "float32", photos))


def test_a_label_that_the_model_does_not_know(tiny_model: ModelFolder, photos: Sequence[Picture]) -> None:
    with pytest.raises(CommandError, match="doesn't know the label 'Yeti' of --pictures; map the folders"):
        Exact(tiny_model, [replace(photos[0], label="Yeti")])


def test_int8_needs_calibration_pictures(tiny_model: ModelFolder, photos: Sequence[Picture]) -> None:
    with pytest.raises(CommandError, match=r"int8 needs pictures .* --calibration"):
        settle(tiny_model, Wanted("openvino", "int8", photos))
    with pytest.raises(CommandError, match="int8 needs --runtime openvino"):
        settle(tiny_model, Wanted("torch", "int8", photos, [photos[0].path]))


def test_int8_is_quantised_measured_and_remembered(
    tiny_model: ModelFolder, photos: Sequence[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight bits change some of the tiny network's answers; whether that is tolerated is set here."""
    monkeypatch.setattr(precision, "MIN_AGREEMENT", 0.3)
    monkeypatch.setattr(precision, "MAX_ACCURACY_LOSS", 0.7)
    wanted = Wanted("openvino", "auto", photos, [p.path for p in photos[:8]])
    card, files = settle(tiny_model, wanted)
    assert card.precision == "int8"
    assert b'element_type="i8"' in files["openvino.xml"] or b"FakeQuantize" in files["openvino.xml"]
    assert card.accuracy["served"]["calibration"]
    with loaded(tiny_model, card, files) as runtime:
        assert runtime.precision == "int8"
    monkeypatch.setattr(conversion, "_nncf", lambda: pytest.fail("it is quantised already"))
    again, same = settle(tiny_model, Wanted())
    assert (again, same) == (card, files), "auto remembers, without the calibration pictures"


def test_a_converted_model_that_differs_is_refused(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = load_runtime

    class Shifted:
        def __init__(self, runtime: Any) -> None:
            self.runtime = runtime

        def logits(self, pixels: np.ndarray) -> np.ndarray:
            shifted: np.ndarray = self.runtime.logits(pixels) + 0.01
            return shifted

    monkeypatch.setattr(conversion, "load_runtime", lambda *args: Shifted(genuine(*args)))
    with pytest.raises(CommandError, match=r"logits differ from PyTorch's by 0.01, more than 0.001; build with"):
        convert(tiny_model, "openvino", "float32")


def test_two_conversions_at_once_are_one(cache: Path) -> None:
    """Two commands would write the same files."""
    made: list[Path] = []

    def make(folder: Path) -> dict[str, int]:
        made.append(folder)
        time.sleep(0.5)  # long enough for the other to come
        return {}

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: conversion._cached("the same", make), range(2)))
    assert made == folders[:1] == folders[1:]


def test_the_same_model_converts_to_the_same_files(tiny_model: ModelFolder, cache: Path) -> None:
    first = convert(tiny_model, "openvino", "float32")
    paths.CACHE = cache / "other"
    assert convert(tiny_model, "openvino", "float32") == first


@pytest.mark.slow
def test_nothing_is_reported_to_anybody(tiny_model: ModelFolder, cache: Path) -> None:
    """OpenVINO's and NNCF's own conversions send events to Google Analytics; nothing here imports what sends them."""
    code = (
        "import sys; from pathlib import Path; from scripts.lib.conversion import _nncf, convert;"
        "from scripts.lib.model_folder import read_model_folder;"
        f"convert(read_model_folder(Path({str(tiny_model.path)!r})), 'openvino', 'float32'); _nncf();"
        "loaded = [n for n, m in sys.modules.items() if n.startswith('openvino_telemetry') and m is not None];"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    environment = {"DENSENET_CACHE": str(cache), "PYTHONPATH": str(paths.ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_line(photos: Sequence[Picture], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_runtime_options(parser)
    assert Wanted.of(parser.parse_args([])) == Wanted("auto", "auto", [], [])
    folder = photos[0].path.parent
    data = ["a=" + str(folder), "b=" + str(photos[1].path.parent)]
    args = ["--runtime", "torch", "--precision", "int8", "--pictures", *data, "--calibration", str(folder)]
    wanted = Wanted.of(parser.parse_args(args))
    assert (wanted.runtime, wanted.precision) == ("torch", "int8")
    assert wanted.pictures == find_pictures(data)
    assert wanted.calibration == [photos[0].path]
    with pytest.raises(CommandError, match="holds no pictures; give a folder with some hundred"):
        Wanted.of(parser.parse_args(["--calibration", str(tmp_path)]))


def test_optional_packages_are_installed_once(tmp_path: Path, cache: Path) -> None:
    project = tmp_path / "an-extra-1"  # a package whose author publishes its source alone
    project.mkdir()
    (project / "setup.py").write_text(
        "from setuptools import setup; setup(name='an-extra', version='1', py_modules=['an_extra'])", encoding="utf-8"
    )
    (project / "an_extra.py").write_text("ANSWER = 42\n", encoding="utf-8")
    source = Path(shutil.make_archive(str(project), "gztar", tmp_path, project.name))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    lock = tmp_path / "extra.lock"
    lock.write_text(f"an-extra @ {source.as_uri()} --hash=sha256:{digest}\n", encoding="utf-8")
    folder = packages.optional_packages(lock, "a test")
    assert (folder / "an_extra.py").read_text(encoding="utf-8") == "ANSWER = 42\n"
    assert packages.optional_packages(lock, "a test") == folder
    assert folder.is_relative_to(cache)


def test_optional_package_that_is_not_the_locked_one_is_refused(tmp_path: Path, cache: Path) -> None:
    write_wheel(tmp_path, "extra", "1.0", {"extra": ""})
    wheel = tmp_path / "extra-1.0-py3-none-any.whl"
    lock = tmp_path / "extra.lock"
    lock.write_text(f"extra @ {wheel.as_uri()} --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    with pytest.raises(CommandError, match="for a test can't be installed"):
        packages.optional_packages(lock, "a test")
    assert not (cache / "packages").exists(), "nothing half is left"


def test_packages_that_are_not_there(tmp_path: Path, cache: Path) -> None:
    lock = tmp_path / "missing.lock"
    missing = (tmp_path / "nothing-here-1.0-py3-none-any.whl").as_uri()
    lock.write_text(f"nothing-here @ {missing} --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    with pytest.raises(CommandError, match=r"for a test can't be installed: .*check the network connection"):
        packages.optional_packages(lock, "a test")
    assert not (cache / "packages").exists(), "nothing half is left"


def test_half_precision_weights_are_converted(tiny_model: ModelFolder, tmp_path: Path) -> None:
    state = load_network(tiny_model.card, tiny_model.weights, CPU).state_dict()
    half = write_model_folder(tmp_path, state, tiny_model.card, LABELS, half=True)
    assert convert(half, "openvino", "float32")[0].converted_sha256


def test_training_records_what_serving_costs(
    photos: Sequence[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: False)
    model = write_tiny_model(tmp_path / "model")
    found = record(model, photos)
    assert found.card.accuracy["served"]["precision"] == "float32"
    assert found.card.accuracy["served"]["pictures"] == len(photos)
    assert found.card.accuracy["top1"] == model.card.accuracy["top1"]
    assert (found.card.runtime, found.card.converted_sha256) == (model.card.runtime, "")
    assert read_model_folder(model.path) == found
