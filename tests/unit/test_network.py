"""Card and weights file → network: torchvision's own networks, and every weights file that isn't one."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn
from torchvision import models

from handler.card import ARCHITECTURES, Architecture, CardError, ModelCard, sha256_of
from handler.network import build_network, check_hash, fit_weights, load_network, read_weights
from scripts.lib.model_folder import ModelFolder, write_model_folder
from scripts.lib.paths import ROOT
from tests.support.servers.worker import LABELS, tiny_card, tiny_state

CPU = torch.device("cpu")
FIRST = "classifier.bias"  # the first tensor by name
State = dict[str, torch.Tensor]


def picture(seed: int = 0) -> torch.Tensor:
    """A batch of one (1, 3, 64, 64), normalised noise."""
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def logits_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The network's answer, as the handler asks for it."""
    with torch.inference_mode():
        answer: torch.Tensor = network.eval()(x)
    return answer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_is_torchvisions(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        ours, theirs = build_network(ARCHITECTURES[name], 1000), getattr(models, name)(weights=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_network_computes_what_torchvisions_does() -> None:
    torch.manual_seed(1)
    theirs = models.densenet121(weights=None)
    ours = build_network(ARCHITECTURES["densenet121"], 1000)
    fit_weights(ours, theirs.state_dict(), "the weights")
    torch.testing.assert_close(logits_of(ours, picture()), logits_of(theirs, picture()), rtol=0, atol=1e-6)


def test_batch_norm_epsilon_is_the_cards() -> None:
    architecture = Architecture("x", 8, (2, 2), 16, batch_norm_eps=1e-3)
    norms = [m for m in build_network(architecture, 2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 11
    assert {m.eps for m in norms} == {1e-3}


@pytest.mark.parametrize("blocks", [(2,), (1, 2, 3)])
def test_any_number_of_blocks_can_be_built(blocks: tuple[int, ...]) -> None:
    assert logits_of(build_network(Architecture("x", 4, blocks, 8), 3), picture()).shape == (1, 3)


def test_loaded_network_is_ready_to_serve(tiny_model: ModelFolder) -> None:
    network = load_network(tiny_model.card, tiny_model.weights, CPU)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last) for m in network.modules() if isinstance(m, nn.Conv2d)
    )
    expected = build_network(tiny_model.card.architecture, len(LABELS))
    expected.load_state_dict(tiny_state())
    torch.testing.assert_close(logits_of(network, picture()), logits_of(expected, picture()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_read_from_both_formats(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"weights{suffix}", tiny_state()
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    read = read_weights(path)
    assert set(read) == set(state)
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_half_precision_weights_become_single_precision(tmp_path: Path) -> None:
    state = tiny_state()
    model = write_model_folder(tmp_path, state, tiny_card(), LABELS, half=True)
    read = read_weights(model.weights)
    assert {t.dtype for t in read.values()} == {torch.float32}
    assert all(torch.equal(read[name], state[name].half().float()) for name in read)
    assert {t.dtype for t in load_network(model.card, model.weights, CPU).parameters()} == {torch.float32}


def test_keys_of_old_torchvision_weights_are_renamed(tmp_path: Path) -> None:
    state = tiny_state()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", name): t for name, t in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    assert set(read_weights(tmp_path / "old.pth")) == set(state)
    network = load_network(tiny_card(), tmp_path / "old.pth", CPU)
    assert torch.equal(network.state_dict()[FIRST], state[FIRST])


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=f"^no weights file at {re.escape(str(tmp_path / 'x.pth'))}$"):
        read_weights(tmp_path / "x.pth")
    with pytest.raises(CardError, match=r"^no weights file at "):
        read_weights(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors_are_refused(tmp_path: Path, share: float) -> None:
    path, whole = tmp_path / "weights.safetensors", save(tiny_state())
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CardError, match=r"^weights\.safetensors isn't a readable weights file: Error while des"):
        read_weights(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_checkpoints_are_refused(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tiny_state(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CardError, match=r"^weights\.pth isn't a (readable weights file: .|plain state dict)"):
        read_weights(path)


def test_empty_checkpoint_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.touch()
    with pytest.raises(
        CardError, match=r"^weights\.pth isn't a readable weights file: it ends too early \(EOFError\)$"
    ):
        read_weights(path)


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("wrapped", [False, True], ids=["pickle", "checkpoint"])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, wrapped: bool) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "made-by-the-pickle"
    pickled = pickle.dumps({"classifier.weight": Evil(folder)}, protocol=2)
    if wrapped:
        torch.save({"classifier.weight": Evil(folder)}, path)
    else:
        path.write_bytes(pickled)
    with pytest.raises(CardError) as caught:
        read_weights(path)
    assert str(caught.value) == (
        "weights.pth isn't a plain state dict (tensors by name), which is all that is loaded: UnpicklingError"
    )
    assert not folder.exists()
    pickle.loads(pickled)
    assert folder.exists()  # so it would have run


UNPICKLE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unpickles(source: str) -> list[str]:
    """What in a program loads data that may run code when it is loaded."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in UNPICKLE]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module and node.module.split(".")[0] in UNPICKLE else []
        elif isinstance(node, ast.Call):
            call, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if call == "torch.load" and options.get("weights_only") != "True":
                found.append(ast.unparse(node))
            if options.get("allow_pickle", "False") != "False":
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_is_recognised(source: str) -> None:
    assert len(unpickles(source)) == 1


def test_nothing_that_runs_here_unpickles() -> None:
    programs = [path for folder in ("handler", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(programs) > 50
    assert [(path, found) for path in programs if (found := unpickles(path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param([torch.zeros(1)], "list", id="list"),
        pytest.param({"state_dict": {"a": torch.zeros(1)}}, "dict", id="nested"),
        pytest.param({"epoch": 3}, "dict", id="no-tensors"),
        pytest.param({1: torch.zeros(1)}, "dict", id="numbered"),
        pytest.param(torch.zeros(1), "Tensor", id="tensor"),
    ],
)
def test_checkpoint_of_something_else_is_refused(tmp_path: Path, content: Any, kind: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CardError, match=rf"^weights\.pth holds a {kind}, not a state dict \(tensors by name\)$"):
        read_weights(tmp_path / "weights.pth")


def test_whole_model_instead_of_its_weights_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CardError, match=r"^model\.pth isn't a plain state dict .*: UnpicklingError$"):
        read_weights(tmp_path / "model.pth")


def without(state: State) -> None:
    """Two tensors fewer."""
    del state["classifier.weight"], state[FIRST]


def extra(state: State) -> None:
    """A tensor that no DenseNet has."""
    state["aux.weight"] = torch.zeros(1)


def reshaped(state: State) -> None:
    """The last layer of a model with a thousand classes."""
    state["classifier.weight"] = torch.zeros(1000, state["classifier.weight"].shape[1])


def two_more(state: State) -> None:
    """Two that don't belong there."""
    extra(state)
    state["zero.weight"] = torch.zeros(1)


def all_of_it(state: State) -> None:
    """Missing, unexpected and reshaped at once."""
    reshaped(state)
    extra(state)
    del state[FIRST]


def undefined(state: State) -> None:
    """One NaN."""
    state["features.conv0.weight"][0, 0, 0, 0] = torch.nan


def infinite(state: State) -> None:
    """One infinity, in a buffer."""
    state["features.norm0.running_var"][3] = torch.inf


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without, "don't fit the architecture: 2 tensors are missing (first classifier.bias)"),
        (extra, "don't fit the architecture: 1 are unexpected (first aux.weight)"),
        (two_more, "don't fit the architecture: 2 are unexpected (first aux.weight)"),
        (
            reshaped,
            "don't fit the architecture: 1 have another shape (first classifier.weight: (1000, 32) in the weights, "
            "(7, 32) in the card's architecture)",
        ),
        (
            all_of_it,
            "don't fit the architecture: 1 tensors are missing (first classifier.bias); "
            "1 are unexpected (first aux.weight); 1 have another shape (first classifier.weight: (1000, 32) in the "
            "weights, (7, 32) in the card's architecture)",
        ),
        (undefined, "hold infinite or undefined numbers (first in features.conv0.weight)"),
        (infinite, "hold infinite or undefined numbers (first in features.norm0.running_var)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[State], None], problem: str) -> None:
    state = tiny_state()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CardError, match=f"^{re.escape('the weights in w.safetensors ' + problem)}$"):
        load_network(tiny_card(), tmp_path / "w.safetensors", CPU)


def test_counters_of_training_may_be_missing(tmp_path: Path) -> None:
    state = {name: t for name, t in tiny_state().items() if not name.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    assert load_network(tiny_card(), tmp_path / "w.safetensors", CPU)


def test_hash_of_the_card_is_checked(tiny_model: ModelFolder) -> None:
    check_hash(tiny_model.weights, tiny_model.card)
    check_hash(tiny_model.weights, tiny_card())  # a card without a hash takes any weights
    other: ModelCard = tiny_card(weights_sha256="ab" * 32)
    message = (
        f"weights.safetensors isn't the file that the card describes: SHA-256 {sha256_of(tiny_model.weights)[:12]}…, "
        "the card says abababababab…; build the archive anew"
    )
    with pytest.raises(CardError, match=f"^{re.escape(message)}$"):
        check_hash(tiny_model.weights, other)
