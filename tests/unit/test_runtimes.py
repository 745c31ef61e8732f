"""The runtimes give the logits of eager PyTorch, and say so when they can't run."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handler.card import CardError
from handler.network import load_network
from handler.preprocessing import Preprocessing
from handler.runtimes import OPENVINO_MODEL, has_bfloat16, load_runtime, usable_precision
from scripts.lib.conversion import settle
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
    for name, content in settle(tiny_model, "openvino", "float32")[1].items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(("precision", "gap"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_logits_are_those_of_eager_torch(
    tiny_model: ModelFolder, unpacked: Path, wanted: np.ndarray, runtime: str, precision: str, gap: float
) -> None:
    card = replace(tiny_model.card, runtime=runtime, precision=precision)
    loaded = load_runtime(card, unpacked, tiny_model.weights, CPU)
    assert loaded.name == runtime
    assert loaded.precision == (precision if has_bfloat16() else "float32")
    found = loaded.logits(PIXELS)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < gap
    assert np.abs(loaded.logits(PIXELS[1:2]) - wanted[1:2]).max() < gap, "any batch size"
    assert np.abs(found - wanted).max() < gap, "an answer isn't overwritten by the next"


def test_bfloat16_needs_a_processor_that_has_it(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert usable_precision(replace(tiny_model.card, precision="bfloat16")) == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert usable_precision(replace(tiny_model.card, precision="bfloat16")) == "bfloat16"


def test_what_openvino_lacks_is_said(
    tiny_model: ModelFolder, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(tiny_model.card, runtime="openvino")
    with pytest.raises(CardError, match=rf"the archive has no {OPENVINO_MODEL}, which its card asks for"):
        load_runtime(card, tmp_path, tiny_model.weights, CPU)
    with pytest.raises(CardError, match=r"takes and gives .*, the card says .*32, 32.*; build the archive anew"):
        load_runtime(replace(card, crop=32, resize=32), unpacked, tiny_model.weights, CPU)
    genuine: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "openvino":
            raise ImportError("No module named 'openvino'")
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CardError, match="was built for OpenVINO, which can't be imported here"):
        load_runtime(card, unpacked, tiny_model.weights, CPU)
