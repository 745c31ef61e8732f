"""What a teacher answers to what the student sees: read off maps that are computed once, or asked each time.

The maps are ReLabel's idea (Yun et al., "Re-labeling ImageNet: from Single to Multi-Labels, from
Global to Localized Labels", 2021): one forward pass over the whole picture, and a target for every
random crop by averaging the part of the map below it. A teacher that is asked each time sees the
very pixels, blended pictures included, and costs as much as a good part of the student's training
(Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models.densenet import DenseNet

from handler.preprocessing import Preprocessing
from scripts.lib.console import Progress
from scripts.lib.training.dataset import Picture
from scripts.lib.training.features import (
    CHUNK,
    FrozenNetwork,
    backbone_digest,
    batches,
    cached_rows,
    feature_maps,
    save_arrays,
)

BASIS = "basis.npz"
COMPONENTS = 256
"""Principal components that are kept of a teacher's features."""


class Teacher(Protocol):
    """Gives targets for what a student sees."""

    @property
    def depth(self) -> int:
        """Channels of its features."""

    def targets(
        self, images: torch.Tensor, indices: torch.Tensor, boxes: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Its features (B, depth, side, side) and logits (B, C), float32.

        Args:
            images: (B, 3, H, W) normalised, what the student sees.
            indices: (B,) of which pictures that is.
            boxes: (B, 4) and of which part; see :meth:`TeacherMaps.crops`.
            side: places a side of the student's map.
        """


@dataclass(frozen=True)
class TeacherMaps:
    """A teacher's last feature maps of the training pictures, reduced, and its logits at each place.

    ``features``: (N, D, h, w) float16, centred, D principal components. ``logits``: (N, C, h, w)
    float16, whose mean over a region is the teacher's answer for that region.
    """

    features: torch.Tensor
    logits: torch.Tensor

    @property
    def depth(self) -> int:
        """Channels of the features."""
        return self.features.shape[1]

    def targets(
        self, images: torch.Tensor, indices: torch.Tensor, boxes: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :class:`Teacher` says, without looking at ``images``."""
        return self.crops(indices, boxes, side)

    def whole(self) -> torch.Tensor:
        """The logits (N, C) of the whole pictures, float32."""
        return self.logits.float().mean(dim=(2, 3))

    def crops(self, indices: torch.Tensor, boxes: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets for crops of pictures.

        Args:
            indices: (B,) which pictures.
            boxes: (B, 4) left, top, right, bottom as shares of width and height, 0 to 1; a
                mirrored crop has its left at the right.
            side: places a side of the student's map.

        Returns:
            Features (B, D, side, side) and logits (B, C), float32.
        """
        maps = torch.cat([self.features[indices].float(), self.logits[indices].float()], dim=1)  # (B, D + C, h, w)
        steps = (torch.arange(side * 2, dtype=torch.float32) + 0.5) / (side * 2)  # two samples a place
        xs = (boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * steps) * 2 - 1  # (B, 2 side)
        ys = (boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * steps) * 2 - 1  # (B, 2 side)
        grid = torch.stack(
            [xs[:, None, :].expand(-1, side * 2, -1), ys[:, :, None].expand(-1, -1, side * 2)], dim=3
        )  # (B, 2 side, 2 side, 2)
        places = F.avg_pool2d(
            F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False), 2
        )  # (B, D + C, side, side)
        return places[:, : self.depth], places[:, self.depth :].mean(dim=(2, 3))


def _stretched(image: Image.Image, side: int) -> np.ndarray:
    """The whole picture as a square, so that every crop of it lies on the map: (side, side, 3) uint8."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def teacher_maps(
    network: DenseNet, preprocessing: Preprocessing, pictures: Sequence[Picture], cache: Path
) -> TeacherMaps:
    """The maps of ``pictures``; those that ``cache`` holds aren't computed again.

    The cache is keyed by picture content, weights and input size. The principal components are
    those of the first chunk.
    """
    key = _key(network, preprocessing)
    basis = _Basis(cache / key / BASIS)
    frozen = FrozenNetwork(network)
    view = partial(_stretched, side=preprocessing.crop)

    def compute(part: Sequence[Picture], progress: Progress) -> np.ndarray:
        maps = feature_maps(frozen, batches([p.path for p in part], preprocessing, view), progress)
        return basis.reduce(np.concatenate([m.to(torch.float16).contiguous().cpu().numpy() for m in maps]))

    reduced = cached_rows(cache / key, "computing teacher maps", pictures, compute)  # (N, D, h, w) float16
    return TeacherMaps(reduced, basis.logits(reduced, network.classifier))


class LiveTeacher:
    """A teacher that is asked about every view.

    Args:
        network: with the student's classes.
        preprocessing: of its card.
        pictures: some of the training pictures; the principal components of the features are theirs.
        crop: side in px at which it sees a view.
        cache: keeps the components.
    """

    def __init__(
        self, network: DenseNet, preprocessing: Preprocessing, pictures: Sequence[Picture], crop: int, cache: Path
    ) -> None:
        some = sorted(pictures, key=lambda p: p.digest)[:CHUNK]
        teacher_maps(network, preprocessing, some, cache)
        basis = _Basis(cache / _key(network, preprocessing) / BASIS)
        self.network, self.crop = FrozenNetwork(network), crop
        self.mean = torch.from_numpy(basis.mean).to(self.network.device)  # (F,)
        self.components = torch.from_numpy(basis.components).to(self.network.device)  # (D, F)

    @property
    def depth(self) -> int:
        """Channels of the features."""
        return self.components.shape[0]

    def targets(
        self, images: torch.Tensor, indices: torch.Tensor, boxes: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :class:`Teacher` says; ``images`` are enough."""
        maps, logits = self.network(resized(images, self.crop))  # (B, F, h, w), (B, C)
        features = F.conv2d(maps - self.mean[:, None, None], self.components[:, :, None, None])  # (B, D, h, w)
        return resized(features, side), logits


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, C, H, W) → (B, C, side, side), smoothed where that is smaller."""
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _key(network: DenseNet, preprocessing: Preprocessing) -> str:
    """The folder of a teacher's maps in the cache."""
    return hashlib.sha256(f"maps:{backbone_digest(network)}:{preprocessing}".encode()).hexdigest()[:16]


class _Basis:
    """Mean and principal components of a teacher's features, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mean = np.zeros(0, np.float32)  # (F,)
        self.components = np.zeros((0, 0), np.float32)  # (D, F)
        if path.is_file():
            with np.load(path) as data:
                self.mean, self.components = data["mean"], data["components"]

    def reduce(self, maps: np.ndarray) -> np.ndarray:
        """(n, F, h, w) → (n, D, h, w) float16, centred."""
        places = np.moveaxis(maps, 1, 3).astype(np.float32)  # (n, h, w, F)
        if not self.mean.size:
            pooled = places.mean(axis=(1, 2))  # (n, F)
            self.mean = pooled.mean(axis=0)
            flat = places.reshape(-1, places.shape[3]) - self.mean  # (n h w, F)
            _, vectors = np.linalg.eigh(flat.T @ flat)  # ascending
            self.components = np.ascontiguousarray(vectors[:, ::-1][:, :COMPONENTS].T)  # (D, F)
            save_arrays(self.path, mean=self.mean, components=self.components)
        return np.moveaxis((places - self.mean) @ self.components.T, 3, 1).astype(np.float16)

    def logits(self, reduced: torch.Tensor, classifier: nn.Linear) -> torch.Tensor:
        """(N, D, h, w) → (N, C, h, w) float16: the classifier, which is linear, on what the components keep."""
        weight, bias = classifier.weight.detach().float().cpu(), classifier.bias.detach().float().cpu()
        reduced_weight = weight @ torch.from_numpy(self.components).T  # (C, D)
        at_mean = bias + weight @ torch.from_numpy(self.mean)  # (C,)
        parts = [
            (torch.einsum("ndhw,cd->nchw", part.float(), reduced_weight) + at_mean[None, :, None, None]).half()
            for part in torch.split(reduced, CHUNK)
        ]
        return torch.cat(parts)
