"""The model card and the model folder: what is right goes through unchanged, what is wrong is named."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from handler.card import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    CardError,
    ModelCard,
    check_labels,
    sha256_of,
)
from scripts.lib.model_folder import ModelFolder, read_json, read_model_folder, write_atomically
from tests.support.servers.worker import LABELS, TINY, tiny_card, write_tiny_model

KEYS = (
    "name, architecture, num_classes, resize, crop, mean, std, temperature, runtime, precision, "
    "threads_per_worker, weights_sha256, converted_sha256, dataset, licence, accuracy, training"
)


def exactly(message: str) -> str:
    """A pattern for ``match=`` that only this text fits."""
    return f"^{re.escape(message)}$"


def as_dict(**changes: Any) -> dict[str, Any]:
    """The tiny card as a dict, with changes."""
    return {**tiny_card().to_dict(), **changes}


def architecture(**changes: Any) -> Architecture:
    """The tiny architecture with changes."""
    values: dict[str, Any] = {"name": "x", "growth_rate": 8, "block_config": (2, 2), "num_init_features": 16}
    return Architecture(**{**values, **changes})


@pytest.mark.parametrize(
    "card",
    [
        tiny_card(),
        tiny_card(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 1.0), temperature=1.7, weights_sha256="0a" * 32),
        ModelCard(
            "imagenet", ARCHITECTURES["densenet161"], 1000, accuracy={"top1": {"all": 0.77}}, training={"a": [1]}
        ),
    ],
    ids=["tiny", "changed", "imagenet"],
)
def test_card_survives_dict_json_and_yaml(card: ModelCard) -> None:
    data = card.to_dict()
    assert ModelCard.from_dict(data) == card
    assert ModelCard.from_dict(json.loads(json.dumps(data))) == card
    assert ModelCard.from_dict(yaml.safe_load(yaml.safe_dump(data))) == card


def test_defaults_are_the_usual_imagenet_preprocessing() -> None:
    card = ModelCard("x", TINY, 2)
    assert (card.resize, card.crop, card.mean, card.std) == (256, 224, IMAGENET_MEAN, IMAGENET_STD)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert card.input_size == (3, 224, 224)
    assert (card.temperature, card.runtime, card.precision, card.threads_per_worker) == (1.0, "torch", "float32", 1)


def test_dict_has_plain_types_and_the_input_size() -> None:
    data = tiny_card().to_dict()
    assert data["input_size"] == [3, 64, 64]
    assert data["architecture"] == {
        "name": "compact",
        "growth_rate": 8,
        "block_config": [2, 2],
        "num_init_features": 16,
        "bn_size": 4,
        "batch_norm_eps": 1e-5,
    }
    assert type(data["mean"]) is type(data["std"]) is list
    assert set(KEYS.split(", ")) | {"input_size"} == set(data)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": ""}, "name is empty: ''"),
        ({"architecture": architecture(growth_rate=0)}, "architecture.growth_rate must be positive, is 0"),
        (
            {"architecture": architecture(block_config=())},
            "architecture.block_config must list positive layer counts, is []",
        ),
        (
            {"architecture": architecture(block_config=(6, 0))},
            "architecture.block_config must list positive layer counts, is [6, 0]",
        ),
        (
            {"architecture": architecture(num_init_features=-1)},
            "architecture.num_init_features must be positive, is -1",
        ),
        ({"architecture": architecture(bn_size=0)}, "architecture.bn_size must be positive, is 0"),
        ({"architecture": architecture(batch_norm_eps=0)}, "architecture.batch_norm_eps must be positive, is 0"),
        (
            {"architecture": architecture(batch_norm_eps=math.inf)},
            "architecture.batch_norm_eps must be positive, is inf",
        ),
        ({"num_classes": 1}, "num_classes must be at least 2, is 1"),
        ({"crop": 31}, "crop must be 32 to 2048 px, is 31"),
        ({"crop": 64, "resize": 63}, "resize must be between crop (64) and 2048 px, is 63"),
        ({"resize": 2049}, "resize must be between crop (64) and 2048 px, is 2049"),
        ({"mean": (0.5, 0.5)}, "mean must be three numbers in the range 0 to 1, is [0.5, 0.5]"),
        ({"mean": (123.7, 116.3, 103.5)}, "mean must be three numbers in the range 0 to 1, is [123.7, 116.3, 103.5]"),
        ({"std": (0.5, 0.5, 0)}, "std must be three numbers above 0 and at most 1, is [0.5, 0.5, 0]"),
        ({"std": (0.5, 0.5, math.nan)}, "std must be three numbers above 0 and at most 1, is [0.5, 0.5, nan]"),
        ({"temperature": 0}, "temperature must be positive, is 0"),
        ({"temperature": math.nan}, "temperature must be positive, is nan"),
        ({"temperature": math.inf}, "temperature must be positive, is inf"),
        ({"runtime": "onnx"}, "runtime must be one of torch, openvino, is 'onnx'"),
        ({"precision": "int4"}, "precision must be one of float32, bfloat16, int8, is 'int4'"),
        ({"threads_per_worker": 0}, "threads_per_worker must be at least 1, is 0"),
        ({"weights_sha256": "ABC"}, "weights_sha256 must be 64 hex digits, is 'ABC'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_value_out_of_range_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CardError, match=exactly(f"the model card is wrong: {problem}")):
        tiny_card(**changes)


def test_all_problems_are_named_at_once() -> None:
    message = "the model card is wrong: name is empty: ''; num_classes must be at least 2, is 0"
    with pytest.raises(CardError, match=exactly(message)):
        tiny_card(name="", num_classes=0)


@pytest.mark.parametrize("edge", [{"crop": 32, "resize": 32}, {"crop": 2048, "resize": 2048}, {"num_classes": 2}])
def test_values_at_the_edge_are_accepted(edge: dict[str, Any]) -> None:
    assert ModelCard.from_dict({**tiny_card(**edge).to_dict()}) == tiny_card(**edge)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "the model card must be a mapping of keys to values, is NoneType", id="none"),
        pytest.param([1], "the model card must be a mapping of keys to values, is list", id="list"),
        pytest.param(
            as_dict(classes=7), f"the model card has the unknown key 'classes'; known keys are {KEYS}", id="unknown"
        ),
        pytest.param(
            {1: 2, "a": 3}, f"the model card has the unknown key 1; known keys are {KEYS}", id="unknown-no-string"
        ),
        pytest.param(
            {k: v for k, v in as_dict().items() if k != "num_classes"},
            "the model card is wrong: the key 'num_classes' is missing",
            id="missing",
        ),
        pytest.param(
            {k: v for k, v in as_dict().items() if k != "architecture"},
            "the model card is wrong: the key 'architecture' is missing",
            id="missing-architecture",
        ),
        pytest.param(
            as_dict(architecture="densenet121"),
            "architecture must be a mapping of keys to values, is str",
            id="architecture-by-name",
        ),
        pytest.param(
            as_dict(architecture={"name": "x"}),
            "architecture is wrong: the key 'growth_rate' is missing",
            id="architecture-missing-key",
        ),
        pytest.param(
            as_dict(architecture={"depth": 121}),
            "architecture has the unknown key 'depth'; known keys are "
            "name, growth_rate, block_config, num_init_features, bn_size, batch_norm_eps",
            id="architecture-unknown-key",
        ),
        pytest.param(
            as_dict(architecture={**as_dict()["architecture"], "block_config": [6, 2.5]}),
            "architecture is wrong: block_config must be tuple[int, ...], is [6, 2.5]",
            id="half-a-layer",
        ),
        pytest.param(as_dict(crop="224"), "the model card is wrong: crop must be int, is '224'", id="text-for-int"),
        pytest.param(as_dict(crop=[64]), "the model card is wrong: crop must be int, is [64]", id="list-for-int"),
        pytest.param(as_dict(crop=64.0), "the model card is wrong: crop must be int, is 64.0", id="float-for-int"),
        pytest.param(
            as_dict(num_classes=True), "the model card is wrong: num_classes must be int, is True", id="bool-for-int"
        ),
        pytest.param(
            as_dict(mean=0.5), "the model card is wrong: mean must be tuple[float, ...], is 0.5", id="float-for-list"
        ),
        pytest.param(
            as_dict(mean=[0.5, 0.5, None]),
            "the model card is wrong: mean must be tuple[float, ...], is [0.5, 0.5, None]",
            id="none-in-list",
        ),
        pytest.param(as_dict(name=None), "the model card is wrong: name must be str, is None", id="none-for-text"),
        pytest.param(
            as_dict(accuracy=[1]),
            "the model card is wrong: accuracy must be dict[str, Any], is [1]",
            id="list-for-dict",
        ),
        pytest.param(
            as_dict(input_size=[3, 224, 224]),
            "the model card is wrong: input_size is [3, 224, 224], but crop says [3, 64, 64]",
            id="input-size-contradicts-crop",
        ),
        pytest.param(
            as_dict(input_size=64),
            "the model card is wrong: input_size is 64, but crop says [3, 64, 64]",
            id="input-size-no-list",
        ),
    ],
)
def test_card_of_the_wrong_form_is_refused(data: object, message: str) -> None:
    with pytest.raises(CardError, match=exactly(message)):
        ModelCard.from_dict(data)


def test_input_size_may_be_left_out_and_integers_may_stand_for_floats() -> None:
    data = {k: v for k, v in as_dict(temperature=2, mean=[0, 0, 0], std=[1, 1, 1]).items() if k != "input_size"}
    card = ModelCard.from_dict(data)
    assert (card.temperature, card.mean, card.std) == (2, (0, 0, 0), (1, 1, 1))


def test_labels_come_in_the_order_of_their_index_and_may_repeat() -> None:
    mapping = {str(i): label for i, label in reversed(list(enumerate(LABELS)))}
    assert check_labels(mapping, tiny_card()) == LABELS


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param(
            {str(i): "x" for i in range(6)},
            'the labels don\'t fit the card: 6 labels for 7 classes, missing 6; index_to_name.json must map "0" to "6" '
            "to a label each",
            id="too-few",
        ),
        pytest.param(
            {str(i): "x" for i in range(8)},
            "the labels don't fit the card: 8 labels for 7 classes, unexpected '7'; "
            'index_to_name.json must map "0" to "6" to a label each',
            id="too-many",
        ),
        pytest.param(
            {str(i): "x" for i in range(13)},
            "the labels don't fit the card: 13 labels for 7 classes, unexpected '10', '11', '12', '7', '8'; "
            'index_to_name.json must map "0" to "6" to a label each',
            id="far-too-many",
        ),
        pytest.param(
            {str(i): "x" for i in range(1, 8)},
            "the labels don't fit the card: 7 labels for 7 classes, missing 0, unexpected '7'; "
            'index_to_name.json must map "0" to "6" to a label each',
            id="counted-from-one",
        ),
        pytest.param(
            {},
            "the labels don't fit the card: 0 labels for 7 classes, missing 0, 1, 2, 3, 4; "
            'index_to_name.json must map "0" to "6" to a label each',
            id="none",
        ),
        pytest.param(
            {str(i): " " if i == 3 else "x" for i in range(7)},
            "the labels don't fit the card: index 3 has no label",
            id="blank",
        ),
        pytest.param(
            {str(i): ["n0144", "x"] if i == 3 else "x" for i in range(7)},
            "the labels don't fit the card: index 3 has no label",
            id="list-for-label",
        ),
        pytest.param(
            {str(i): "x\ud800" if i == 3 else "x" for i in range(7)},
            "the labels don't fit the card: index 3 has a lone surrogate, which can't be sent",
            id="half-a-character",
        ),
        pytest.param(
            LABELS, "index_to_name.json must be a mapping of keys to values, is list", id="list-instead-of-mapping"
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(CardError, match=exactly(message)):
        check_labels(labels, tiny_card())


def test_model_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_tiny_model(tmp_path / "new" / "model")
    assert read_model_folder(written.path) == written
    assert written.card.weights_sha256 == sha256_of(written.weights)
    assert written.labels == LABELS
    assert {p.name for p in written.path.iterdir()} == {"weights.safetensors", "index_to_name.json", "card.json"}
    assert "Bächli" in (written.path / "index_to_name.json").read_text(encoding="utf-8")


def test_the_same_model_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    one, two = write_tiny_model(tmp_path / "one"), write_tiny_model(tmp_path / "two")
    for name in ("weights.safetensors", "index_to_name.json", "card.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


@pytest.mark.parametrize("name", ["card.json", "index_to_name.json"])
def test_model_folder_without_a_json_file_is_refused(tmp_path: Path, name: str) -> None:
    model = write_tiny_model(tmp_path)
    (model.path / name).unlink()
    message = (
        f"no file at {tmp_path / name}; a model folder holds weights.safetensors, index_to_name.json and card.json"
    )
    with pytest.raises(CardError, match=exactly(message)):
        read_model_folder(model.path)


def test_model_folder_without_weights_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    model.weights.unlink()
    with pytest.raises(CardError, match=f"^no weights at {re.escape(str(model.weights))}; a model folder holds"):
        read_model_folder(model.path)


def test_model_folder_with_other_weights_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    model.weights.write_bytes(b"other")
    message = (
        f"{model.weights} isn't the file that its card describes: SHA-256 d9298a10d1b0…, "
        f"the card says {model.card.weights_sha256[:12]}…; restore the weights or train again"
    )
    with pytest.raises(CardError, match=exactly(message)):
        read_model_folder(model.path)


def test_model_folder_with_the_labels_of_another_model_is_refused(tmp_path: Path, tiny_model: ModelFolder) -> None:
    model = write_tiny_model(tmp_path)
    (model.path / "index_to_name.json").write_text('{"0": "cat", "1": "dog"}', encoding="utf-8")
    with pytest.raises(
        CardError, match=r"^the labels don't fit the card: 2 labels for 7 classes, missing 2, 3, 4, 5, 6;"
    ):
        read_model_folder(model.path)
    assert read_model_folder(tiny_model.path) == tiny_model


def test_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CardError, match=f"^{re.escape(str(path))} isn't JSON: Expecting property name"):
        read_json(path)


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
