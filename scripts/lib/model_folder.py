"""A model on disk: one folder with weights, labels and card.

``train.py`` writes it, ``build_archive.py`` packs it, ``evaluate.py`` reads it, and the model that
the repository carries is one (``model_store/bundled``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handler.card import CardError, ModelCard, check_labels, sha256_of

WEIGHTS = "weights.safetensors"
LABELS = "index_to_name.json"
CARD = "card.json"


@dataclass(frozen=True)
class ModelFolder:
    """A checked model: the card fits the labels, the weights have the card's hash."""

    path: Path
    card: ModelCard
    labels: list[str]

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / WEIGHTS


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, at once or in parts, so that a reader sees the old content or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        with contextlib.suppress(OSError):  # a read-only disk is told of above
            part.unlink(missing_ok=True)


def json_bytes(data: object) -> bytes:
    """``data`` as JSON for people and for diffs: indented, UTF-8, a newline at the end."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CardError: there is no such file, or it isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CardError(f"no file at {path}; a model folder holds {WEIGHTS}, {LABELS} and {CARD}") from None
    except ValueError as error:
        raise CardError(f"{path} isn't JSON: {error}") from None


def read_model_folder(path: Path) -> ModelFolder:
    """The model in ``path``.

    Raises:
        CardError: a file is missing, the card is wrong, the labels don't fit it, or the weights
            aren't the ones that the card describes.
    """
    card = ModelCard.from_dict(read_json(path / CARD))
    labels = check_labels(read_json(path / LABELS), card)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise CardError(f"no weights at {weights}; a model folder holds {WEIGHTS}, {LABELS} and {CARD}")
    found = sha256_of(weights)
    if found != card.weights_sha256:
        raise CardError(
            f"{weights} isn't the file that its card describes: SHA-256 {found[:12]}…, "
            f"the card says {card.weights_sha256[:12] or 'none'}…; restore the weights or train again"
        )
    return ModelFolder(path, card, labels)


def write_model_folder(
    path: Path, state: Mapping[str, Any], card: ModelCard, labels: Sequence[str], half: bool = False
) -> ModelFolder:
    """Write weights, labels and card; the card gets the hash of the weights.

    Args:
        path: the folder, made if missing.
        state: state dict of the network.
        card: the card, its ``weights_sha256`` is replaced.
        labels: the label of each class, in the order of the index.
        half: store floating-point tensors as float16 (half the size; read back as float32).
    """
    import torch
    from safetensors.torch import save

    tensors = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue  # only training reads it
        plain = tensor.detach().cpu().contiguous()
        tensors[name] = plain.to(torch.float16) if half and plain.is_floating_point() else plain
    blob = save(tensors)
    card = replace(card, weights_sha256=hashlib.sha256(blob).hexdigest())
    write_atomically(path / WEIGHTS, blob)
    write_atomically(path / LABELS, json_bytes({str(i): label for i, label in enumerate(labels)}))
    write_atomically(path / CARD, json_bytes(card.to_dict()))
    return read_model_folder(path)
