"""The model card: what a model is, as data that the handler obeys and ``describe`` returns.

The card travels next to the weights (``card.json`` of a model folder) and inside the archive
(section ``handler:`` of ``model-config.yaml``). It is checked here, in one place, for training,
packing and serving alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean of ImageNet's pictures, range 0 to 1 (torchvision's ``ImageClassification`` preset)."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation of ImageNet's pictures, range 0 to 1 (same source)."""

RUNTIMES = ("torch", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")
MAX_INPUT_PX = 2048


class CardError(ValueError):
    """The card is incomplete, contradicts itself, or doesn't fit the weights or the labels."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a DenseNet-BC (Huang et al., "Densely Connected Convolutional Networks", 2017).

    ``growth_rate``: channels that each layer adds. ``block_config``: layers in each dense block.
    ``num_init_features``: channels of the first convolution. ``bn_size``: the bottleneck is
    ``bn_size * growth_rate`` channels wide. ``batch_norm_eps``: added to the variance.
    """

    name: str
    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    bn_size: int = 4
    batch_norm_eps: float = 1e-5


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("densenet121", 32, (6, 12, 24, 16), 64),
        Architecture("densenet161", 48, (6, 12, 36, 24), 96),
        Architecture("densenet169", 32, (6, 12, 32, 32), 64),
        Architecture("densenet201", 32, (6, 12, 48, 32), 64),
    )
}
"""The four architectures of torchvision, by name (torchvision ``models/densenet.py``)."""


@dataclass(frozen=True)
class ModelCard:
    """What a model is and how it is to be run. Construct with :meth:`from_dict` for checked input.

    Sizes are pixels, ``mean`` and ``std`` are per RGB channel in the range 0 to 1, ``temperature``
    divides the logits before the softmax (Guo et al., "On Calibration of Modern Neural Networks",
    2017; 1 leaves them as they are), ``weights_sha256`` is the hash of the weights file in hex,
    ``converted_sha256`` that of the runtime's own files (:func:`handler.runtimes.converted_sha256`),
    "" where it has none. ``accuracy`` and ``training`` are free-form records of what was measured and how it was made.
    """

    name: str
    architecture: Architecture
    num_classes: int
    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    temperature: float = 1.0
    runtime: str = "torch"
    precision: str = "float32"
    threads_per_worker: int = 1
    weights_sha256: str = ""
    converted_sha256: str = ""
    dataset: str = ""
    licence: str = ""
    accuracy: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise CardError naming every field that is out of range."""
        a = self.architecture
        rules = [
            (bool(self.name), f"name is empty: {self.name!r}"),
            (a.growth_rate > 0, f"architecture.growth_rate must be positive, is {a.growth_rate}"),
            (
                len(a.block_config) > 0 and all(n > 0 for n in a.block_config),
                f"architecture.block_config must list positive layer counts, is {list(a.block_config)}",
            ),
            (a.num_init_features > 0, f"architecture.num_init_features must be positive, is {a.num_init_features}"),
            (a.bn_size > 0, f"architecture.bn_size must be positive, is {a.bn_size}"),
            (
                0 < a.batch_norm_eps < math.inf,
                f"architecture.batch_norm_eps must be positive, is {a.batch_norm_eps}",
            ),
            (self.num_classes >= 2, f"num_classes must be at least 2, is {self.num_classes}"),
            (32 <= self.crop <= MAX_INPUT_PX, f"crop must be 32 to {MAX_INPUT_PX} px, is {self.crop}"),
            (
                self.crop <= self.resize <= MAX_INPUT_PX,
                f"resize must be between crop ({self.crop}) and {MAX_INPUT_PX} px, is {self.resize}",
            ),
            (
                len(self.mean) == 3 and all(0 <= m <= 1 for m in self.mean),
                f"mean must be three numbers in the range 0 to 1, is {list(self.mean)}",
            ),
            (
                len(self.std) == 3 and all(0 < s <= 1 for s in self.std),
                f"std must be three numbers above 0 and at most 1, is {list(self.std)}",
            ),
            (0 < self.temperature < math.inf, f"temperature must be positive, is {self.temperature}"),
            (self.runtime in RUNTIMES, f"runtime must be one of {', '.join(RUNTIMES)}, is {self.runtime!r}"),
            (
                self.precision in PRECISIONS,
                f"precision must be one of {', '.join(PRECISIONS)}, is {self.precision!r}",
            ),
            (self.threads_per_worker >= 1, f"threads_per_worker must be at least 1, is {self.threads_per_worker}"),
            *(
                (re.fullmatch(r"([0-9a-f]{64})?", value) is not None, f"{name} must be 64 hex digits, is {value!r}")
                for name, value in (
                    ("weights_sha256", self.weights_sha256),
                    ("converted_sha256", self.converted_sha256),
                )
            ),
        ]
        problems = [problem for holds, problem in rules if not holds]
        if problems:
            raise CardError(f"the model card is wrong: {'; '.join(problems)}")

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network sees."""
        return (3, self.crop, self.crop)

    @classmethod
    def from_dict(cls, data: object) -> ModelCard:
        """The card in ``data``, as read from JSON or YAML.

        Raises:
            CardError: a key is missing, unknown or of the wrong type, or a value is out of range.
        """
        values = dict(_mapping(data, "the model card"))
        size = values.pop("input_size", None)
        fields = _typed(cls, values, "the model card", skip=("architecture",))
        if "architecture" not in values:
            raise CardError("the model card is wrong: the key 'architecture' is missing")
        architecture = _mapping(values["architecture"], "architecture")
        fields["architecture"] = Architecture(**_typed(Architecture, architecture, "architecture"))
        card = cls(**fields)
        if size is not None and size != list(card.input_size):
            raise CardError(f"the model card is wrong: input_size is {size}, but crop says {list(card.input_size)}")
        return card

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON types, the inverse of :meth:`from_dict`."""
        values = dataclasses.asdict(self)
        values["architecture"]["block_config"] = list(self.architecture.block_config)
        values["mean"], values["std"] = list(self.mean), list(self.std)
        values["input_size"] = list(self.input_size)
        return values


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_labels(labels: Mapping[str, str], card: ModelCard) -> list[str]:
    """The labels in the order of their index.

    Args:
        labels: index (as a decimal string) to label, as ``index_to_name.json`` holds it.
        card: the card of the same model.

    Raises:
        CardError: there isn't exactly one non-empty label for each of the card's classes.
    """
    _mapping(labels, "index_to_name.json")
    wanted = {str(index) for index in range(card.num_classes)}
    if set(labels) != wanted:
        missing = sorted(wanted - set(labels), key=int)[:5]
        extra = sorted(set(labels) - wanted)[:5]
        raise CardError(
            f"the labels don't fit the card: {len(labels)} labels for {card.num_classes} classes"
            f"{', missing ' + ', '.join(missing) if missing else ''}"
            f"{', unexpected ' + ', '.join(map(repr, extra)) if extra else ''}; "
            f'index_to_name.json must map "0" to "{card.num_classes - 1}" to a label each'
        )
    bad = [index for index, label in labels.items() if not isinstance(label, str) or not label.strip()]
    if bad:
        raise CardError(f"the labels don't fit the card: index {bad[0]} has no label")
    halves = [index for index, label in labels.items() if re.search("[\ud800-\udfff]", label)]
    if halves:
        raise CardError(f"the labels don't fit the card: index {halves[0]} has a lone surrogate, which can't be sent")
    return [labels[str(index)] for index in range(card.num_classes)]


def _mapping(data: object, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise CardError(f"{what} must be a mapping of keys to values, is {type(data).__name__}")
    return data


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "tuple[int, ...]": (list, tuple),
    "tuple[float, ...]": (list, tuple),
    "dict[str, Any]": (dict,),
}


def _typed(cls: type, values: Mapping[str, Any], what: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """``values`` with the types that the dataclass ``cls`` declares; a CardError where that can't be."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise CardError(f"{what} has the unknown key {unknown[0]!r}; known keys are {', '.join(fields)}")
    typed: dict[str, Any] = {}
    for name, f in fields.items():
        if name in skip:
            continue
        if name not in values:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise CardError(f"{what} is wrong: the key {name!r} is missing")
            continue
        value, kind = values[name], str(f.type)
        items = value if isinstance(value, (list, tuple)) else [value]
        element = {"tuple[int, ...]": "int", "tuple[float, ...]": "float"}.get(kind, kind)
        numeric = all(isinstance(i, _KINDS[element]) and not isinstance(i, bool) for i in items)
        if not isinstance(value, _KINDS[kind]) or not numeric:
            raise CardError(f"{what} is wrong: {name} must be {kind}, is {value!r}")
        typed[name] = tuple(value) if isinstance(value, list) else value
    return typed
