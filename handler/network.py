"""The network: a card and a weights file → a DenseNet in evaluation mode → logits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from handler.card import Architecture, CardError, ModelCard, sha256_of
from handler.deferred import deferred

with deferred():
    from torchvision.models.densenet import DenseNet

_OLD_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


def build_network(architecture: Architecture, num_classes: int) -> DenseNet:
    """A DenseNet with freshly initialised weights; input (N, 3, H, W) float, output (N, num_classes) logits."""
    network = DenseNet(
        growth_rate=architecture.growth_rate,
        # torchvision's annotation says four blocks, its code takes any number
        block_config=cast("tuple[int, int, int, int]", architecture.block_config),
        num_init_features=architecture.num_init_features,
        bn_size=architecture.bn_size,
        num_classes=num_classes,
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = architecture.batch_norm_eps
    return network


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in ``path`` as float32, with torchvision's present key names.

    Reads ``.safetensors``, or a state dict saved by ``torch.save`` (unpickled with
    ``weights_only=True``: such a file can't run code).

    Raises:
        CardError: the file is missing, unreadable, or holds something other than a state dict.
    """
    return {name: t.float() if t.is_floating_point() else t for name, t in _read_state(path).items()}


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """The same in the precision of the file."""
    if not path.is_file():
        raise CardError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CardError(f"{path.name} isn't a readable weights file: {_first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError, and whatever a crafted pickle provokes
        raise CardError(
            f"{path.name} isn't a plain state dict (tensors by name), which is all that is loaded: "
            f"{type(error).__name__}"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CardError(f"{path.name} holds a {type(state).__name__}, not a state dict (tensors by name)")
    return {_OLD_KEY.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [f"it ends too early ({type(error).__name__})"])[0]


def fit_weights(network: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy ``state`` into ``network``; every tensor must be there with the right shape.

    Raises:
        CardError: tensors are missing, unexpected, of another shape, or not finite.
    """
    own = network.state_dict()
    # counters that only training with momentum=None reads; converted weights lack them
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - counters)
    unexpected = sorted(set(state) - set(own))
    reshaped = [n for n in own if n in state and state[n].shape != own[n].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing (first {missing[0]})")
    if unexpected:
        problems.append(f"{len(unexpected)} are unexpected (first {unexpected[0]})")
    if reshaped:
        name = reshaped[0]
        problems.append(
            f"{len(reshaped)} have another shape (first {name}: {tuple(state[name].shape)} "
            f"in the weights, {tuple(own[name].shape)} in the card's architecture)"
        )
    if problems:
        raise CardError(f"{what} don't fit the architecture: {'; '.join(problems)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CardError(f"{what} hold infinite or undefined numbers (first in {broken[0]})")
    network.load_state_dict(state, strict=False)


def check_hash(weights: Path, card: ModelCard) -> None:
    """Check that ``weights`` is the file that the card describes, where the card has a hash.

    Raises:
        CardError: it is another file.
    """
    found = sha256_of(weights)
    if card.weights_sha256 not in ("", found):
        raise CardError(
            f"{weights.name} isn't the file that the card describes: SHA-256 {found[:12]}…, "
            f"the card says {card.weights_sha256[:12]}…; build the archive anew"
        )


class _NoRandomWeights(TorchFunctionMode):
    """Leaves new parameters without random values, which those that are read would replace anyway.

    The ``meta`` device would do the same, but imports ``torch._dynamo``: more than a second and 100 MB.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def load_network(card: ModelCard, weights: Path, device: torch.device) -> DenseNet:
    """The trained network of a model, in evaluation mode, channels last, ready on ``device``.

    Raises:
        CardError: the weights don't fit the card.
    """
    with _NoRandomWeights():
        network = build_network(card.architecture, card.num_classes)
    # copying into the final layout and precision leaves no freed copies in the heap: 25 MB a worker
    network.requires_grad_(False).to(memory_format=torch.channels_last)
    fit_weights(network, _read_state(weights), f"the weights in {weights.name}")
    return network.eval().to(device)
