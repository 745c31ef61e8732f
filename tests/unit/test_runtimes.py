"""The runtimes give the logits of eager PyTorch, and say so when they can't run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handler.card import CardError, ModelCard
from handler.network import load_network
from handler.preprocessing import Preprocessing
from handler.runtimes import OPENVINO_MODEL, converted_sha256, has_bfloat16, load_runtime, usable_precision
from scripts.lib.conversion import convert
from scripts.lib.model_folder import ModelFolder

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def wanted(tiny_model: ModelFolder) -> np.ndarray:
    """The logits of eager PyTorch."""
    network = load_network(tiny_model.card, tiny_model.weights, CPU)
    with torch.inference_mode():
        logits: np.ndarray = network(Preprocessing.of(tiny_model.card).to_tensor(PIXELS)).numpy()
    return logits


@pytest.fixture(scope="module")
def unpacked(tiny_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the converted model in it, as an archive is unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    for name, content in convert(tiny_model, "openvino", "float32")[1].items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def card(tiny_model: ModelFolder, unpacked: Path) -> ModelCard:
    """The card of the converted model."""
    digest = converted_sha256(unpacked / OPENVINO_MODEL)
    return replace(tiny_model.card, runtime="openvino", converted_sha256=digest)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(("precision", "gap"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_logits_are_those_of_eager_torch(
    tiny_model: ModelFolder,
    card: ModelCard,
    unpacked: Path,
    wanted: np.ndarray,
    runtime: str,
    precision: str,
    gap: float,
) -> None:
    loaded = load_runtime(replace(card, runtime=runtime, precision=precision), unpacked, tiny_model.weights, CPU)
    assert loaded.name == runtime
    assert loaded.precision == (precision if has_bfloat16(CPU) else "float32")
    found = loaded.logits(PIXELS)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < gap
    assert np.abs(loaded.logits(PIXELS[1:2]) - wanted[1:2]).max() < gap, "any batch size"
    assert np.abs(found - wanted).max() < gap, "an answer isn't overwritten by the next"


def test_bfloat16_needs_a_processor_that_has_it(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert usable_precision(replace(tiny_model.card, precision="bfloat16"), CPU) == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert usable_precision(replace(tiny_model.card, precision="bfloat16"), CPU) == "bfloat16"


def test_what_openvino_lacks_is_said(
    tiny_model: ModelFolder, card: ModelCard, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CardError, match=rf"the archive has no {OPENVINO_MODEL}, which its card asks for"):
        load_runtime(card, tmp_path, tiny_model.weights, CPU)
    with pytest.raises(CardError, match=r"takes and gives .*, the card says .*32, 32.*; build the archive anew"):
        load_runtime(replace(card, crop=32, resize=32), unpacked, tiny_model.weights, CPU)
    with pytest.raises(CardError, match="isn't the one that the card describes; build the archive anew"):
        load_runtime(replace(card, converted_sha256="0" * 64), unpacked, tiny_model.weights, CPU)
    with pytest.raises(CardError, match="int8 needs the runtime openvino on a CPU"):
        load_runtime(replace(card, runtime="torch", precision="int8"), unpacked, tiny_model.weights, CPU)
    monkeypatch.setitem(sys.modules, "openvino", None)  # an import of it fails
    with pytest.raises(CardError, match="was built for OpenVINO, which can't be imported here"):
        load_runtime(card, unpacked, tiny_model.weights, CPU)


def test_torch_compiles_where_the_settings_ask_for_it(tiny_model: ModelFolder, wanted: np.ndarray) -> None:
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        seen.append(len(list(graph.graph.nodes)))
        return graph.forward

    loaded = load_runtime(tiny_model.card, Path(), tiny_model.weights, CPU, {"backend": backend})
    assert np.abs(loaded.logits(PIXELS) - wanted).max() < 1e-3
    assert seen


def test_pixels_that_may_not_be_written_are_read(card: ModelCard, unpacked: Path, wanted: np.ndarray) -> None:
    pixels = PIXELS.copy()
    pixels.flags.writeable = False
    found = load_runtime(card, unpacked, Path(), CPU).logits(pixels)
    assert np.abs(found - wanted).max() < 1e-3


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(("precision", "gap"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_features_are_those_in_front_of_the_mean(
    tiny_model: ModelFolder, card: ModelCard, unpacked: Path, runtime: str, precision: str, gap: float
) -> None:
    network = load_network(tiny_model.card, tiny_model.weights, CPU)
    with torch.inference_mode():
        wanted = network.features(Preprocessing.of(tiny_model.card).to_tensor(PIXELS)).relu().numpy()
    loaded = load_runtime(replace(card, runtime=runtime, precision=precision), unpacked, tiny_model.weights, CPU)
    logits, features = loaded.logits_and_features(PIXELS)
    assert features.dtype == np.float32
    assert features.shape == wanted.shape
    assert np.abs(features - wanted).max() < gap * np.abs(wanted).max()
    assert (logits == loaded.logits(PIXELS)).all(), "what is explained is the prediction that is served"


def test_features_of_a_compiled_network_are_the_same(tiny_model: ModelFolder) -> None:
    eager = load_runtime(tiny_model.card, Path(), tiny_model.weights, CPU).logits_and_features(PIXELS)
    compiled = load_runtime(tiny_model.card, Path(), tiny_model.weights, CPU, {"backend": "eager"})
    for found, wanted in zip(compiled.logits_and_features(PIXELS), eager):
        assert np.abs(found - wanted).max() < 1e-4
