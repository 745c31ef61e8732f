"""Pooled features of a network over many pictures, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.densenet import DenseNet

from handler.images import decode
from handler.preprocessing import Preprocessing
from handler.runtimes import has_bfloat16
from handler.runtimes.openvino_runtime import import_openvino
from scripts.lib.console import Progress
from scripts.lib.conversion import has_openvino
from scripts.lib.model_folder import write_atomically
from scripts.lib.tracing import from_torch
from scripts.lib.training.dataset import MAX_PIXELS, Picture

CHUNK = 1024
View = Callable[[Image.Image], np.ndarray]
"""RGB image → (side, side, 3) uint8."""


def autocast_type(device: torch.device) -> torch.dtype:
    """The fastest type for training on ``device``: bfloat16 or float16 where the processor computes in it."""
    if has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision in :func:`autocast_type`; nothing where that is float32."""
    dtype = autocast_type(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def maps_and_logits(network: DenseNet, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What DenseNet.forward computes, with the last feature maps on the way.

    Args:
        network: the network.
        images: (N, 3, H, W) normalised.

    Returns:
        Feature maps (N, F, H / 32, W / 32), at least 0, and logits (N, classes).
    """
    maps = F.relu(network.features(images), inplace=True)  # (N, F, h, w)
    pooled = F.adaptive_avg_pool2d(maps, (1, 1)).flatten(1)  # (N, F)
    return maps, network.classifier(pooled)  # (N, classes)


class _MapsAndLogits(nn.Module):
    """:func:`maps_and_logits` as a module, for OpenVINO."""

    def __init__(self, network: DenseNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return maps_and_logits(self.network, images)


class FrozenNetwork:
    """A network that isn't trained any more, in mixed precision where it is.

    On a CPU OpenVINO computes it, where that is installed: in two thirds of PyTorch's time (DenseNet-169, bfloat16).
    """

    def __init__(self, network: DenseNet) -> None:
        self.network = network.eval()
        self.device = next(network.parameters()).device
        self._compiled: dict[torch.Size, Any] = {}  # by height and width

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The answers to ``images`` as :func:`maps_and_logits` gives them, both float32 and on the network's device."""
        if self.device.type != "cpu" or not has_openvino():
            with torch.inference_mode(), autocast(self.device):
                maps, logits = maps_and_logits(self.network, images.to(self.device))
            return maps.float(), logits.float()
        pixels = images.contiguous().numpy()  # (N, 3, H, W)
        if images.shape[2:] not in self._compiled:
            precision = "bf16" if has_bfloat16(self.device) else "f32"
            self._compiled[images.shape[2:]] = import_openvino().compile_model(
                from_torch(_MapsAndLogits(self.network), pixels),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": precision,
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "ENABLE_CPU_PINNING": False,  # other work may need the cores too
                },
            )
        maps, logits = self._compiled[images.shape[2:]](pixels).to_tuple()
        return torch.from_numpy(maps), torch.from_numpy(logits)


class _Views(Dataset[torch.Tensor]):
    """Picture files through one view each: item ``i`` is (side, side, 3) uint8."""

    def __init__(self, paths: Sequence[Path], view: View) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.view(decode(self.paths[index].read_bytes(), MAX_PIXELS))))


def batches(
    paths: Sequence[Path], preprocessing: Preprocessing, view: View | None = None, batch: int = 32
) -> Iterable[torch.Tensor]:
    """Batches (N, 3, side, side), normalised, in the order of ``paths``.

    Args:
        paths: picture files.
        preprocessing: normalises, and gives the view where there is none: what the server sees.
        view: RGB image → (side, side, 3) uint8.
        batch: pictures in each.
    """
    views = _Views(paths, view or preprocessing.to_array)
    for arrays in DataLoader(views, batch_size=batch, num_workers=1):
        yield preprocessing.to_tensor(arrays.numpy())


def backbone_digest(network: DenseNet) -> str:
    """SHA-256 of all weights before the classifier: what pooled features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.features.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cached_rows(
    folder: Path, what: str, pictures: Sequence[Picture], compute: Callable[[Sequence[Picture], Progress], np.ndarray]
) -> torch.Tensor:
    """A row a picture, in their order; those that ``folder`` holds aren't computed again.

    It is written in chunks of pictures in the order of their digests (a mixture of all classes),
    so an interrupted run goes on where it was.

    Args:
        folder: of the cache, for this one way to compute.
        what: for the progress.
        pictures: with their digests.
        compute: pictures → as many rows; advances the progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, np.ndarray] = {}
    for chunk in sorted(folder.glob("*-*.npz")):
        with np.load(chunk) as data:
            known.update(zip(data["digests"].tolist(), data["features"]))
    missing = sorted({p.digest: p for p in pictures if p.digest not in known}.values(), key=lambda p: p.digest)
    progress = Progress(what, len(missing))
    for start in range(0, len(missing), CHUNK):
        part = missing[start : start + CHUNK]
        rows = compute(part, progress)
        digests = np.array([p.digest for p in part])
        save_arrays(folder / f"{part[0].digest[:16]}-{len(part)}.npz", digests=digests, features=rows)
        known.update(zip(digests.tolist(), rows))
    return torch.from_numpy(np.stack([known[p.digest] for p in pictures]))


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` file so that a reader sees all of it or nothing."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_atomically(path, file.getvalue())


def feature_maps(frozen: FrozenNetwork, images: Iterable[torch.Tensor], progress: Progress) -> Iterator[torch.Tensor]:
    """The last feature maps (N, F, h, w) of each batch."""
    for batch in images:
        maps, _ = frozen(batch)
        yield maps
        progress.advance(len(maps))


def cached_features(
    network: DenseNet, preprocessing: Preprocessing, pictures: Sequence[Picture], cache: Path
) -> torch.Tensor:
    """Pooled features of ``pictures``; those that ``cache`` holds aren't computed again.

    The cache is keyed by picture content, weights and preprocessing.

    Returns:
        (N, F) float32, in the order of ``pictures``.
    """
    frozen = FrozenNetwork(network)

    def compute(part: Sequence[Picture], progress: Progress) -> np.ndarray:
        maps = feature_maps(frozen, batches([p.path for p in part], preprocessing), progress)
        return np.concatenate([m.mean(dim=(2, 3)).cpu().numpy().astype(np.float16) for m in maps])  # (n, F)

    key = hashlib.sha256(f"{backbone_digest(network)}:{preprocessing}".encode()).hexdigest()[:16]
    return cached_rows(cache / key, "computing features", pictures, compute).float()  # (N, F)
