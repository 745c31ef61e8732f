"""Pooled features of a network over many pictures, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.densenet import DenseNet

from handler.images import decode
from handler.preprocessing import Preprocessing
from scripts.lib.console import Progress
from scripts.lib.training.dataset import MAX_PIXELS, Picture

CHUNK = 1024


def autocast_type(device: torch.device) -> torch.dtype:
    """The fastest type for training on ``device``: bfloat16 or float16 where the processor computes in it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    can = torch.cpu.get_capabilities()
    return torch.bfloat16 if can.get("amx_bf16") or can.get("avx512_bf16") or can.get("arm_bf16") else torch.float32


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


class ExactPictures(Dataset[torch.Tensor]):
    """Pictures as the server sees them: item ``i`` is (crop, crop, 3) uint8."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = paths, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = decode(self.paths[index].read_bytes(), MAX_PIXELS)
        return torch.from_numpy(self.preprocessing.to_array(image).copy())  # (crop, crop, 3) uint8


def exact_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, batch: int = 32, workers: int = 1
) -> Iterable[torch.Tensor]:
    """Batches (N, 3, crop, crop), normalised, in the order of ``paths``."""
    for arrays in DataLoader(ExactPictures(paths, preprocessing), batch_size=batch, num_workers=workers):
        yield preprocessing.to_tensor(arrays.numpy())


def backbone_digest(network: DenseNet) -> str:
    """SHA-256 of all weights before the classifier: what pooled features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.features.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cached_features(
    network: DenseNet, preprocessing: Preprocessing, pictures: Sequence[Picture], cache: Path
) -> torch.Tensor:
    """Pooled features of ``pictures``; those that ``cache`` holds aren't computed again.

    The cache is keyed by picture content, weights and preprocessing. It is written in chunks, so
    an interrupted run goes on where it was.

    Returns:
        (N, F) float32, in the order of ``pictures``.
    """
    key = hashlib.sha256(f"{backbone_digest(network)}:{preprocessing}".encode()).hexdigest()[:16]
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, np.ndarray] = {}
    for chunk in sorted(folder.glob("*.npz")):
        with np.load(chunk) as data:
            known.update(zip(data["digests"].tolist(), data["features"]))
    missing = list({p.digest: p for p in pictures if p.digest not in known}.values())
    progress = Progress("computing features", len(missing))
    for start in range(0, len(missing), CHUNK):
        part = missing[start : start + CHUNK]
        rows = []
        device = next(network.parameters()).device
        with torch.inference_mode():
            for images in exact_batches([p.path for p in part], preprocessing):
                with autocast(device):
                    maps, _ = maps_and_logits(network, images.to(device))
                rows.append(maps.float().mean(dim=(2, 3)).cpu().numpy().astype(np.float16))
                progress.advance(len(maps))
        features = np.concatenate(rows)  # (n, F)
        digests = np.array([p.digest for p in part])
        temporary = folder / f"{os.getpid()}.part"
        with temporary.open("wb") as file:
            np.savez(file, digests=digests, features=features)
        os.replace(temporary, folder / f"{part[0].digest[:16]}-{len(part)}.npz")
        known.update(zip(digests.tolist(), features))
    return torch.from_numpy(np.stack([known[p.digest] for p in pictures])).float()  # (N, F)
