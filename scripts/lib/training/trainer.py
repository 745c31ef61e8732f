"""Epochs: a network, pictures and a recipe → trained weights, with checkpoints after every epoch."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms
from torchvision.models.densenet import DenseNet

from handler.images import decode
from handler.preprocessing import Preprocessing
from scripts.lib.console import CommandError, Progress, duration, say
from scripts.lib.training.dataset import MAX_PIXELS, Picture
from scripts.lib.training.features import exact_batches, features_and_logits


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Every field is a flag of ``train.py``.

    ``epochs``: passes over the training pictures. ``batch``: pictures a step. ``rate``: peak
    learning rate, reached linearly after ``warmup`` epochs, then cosine decay to zero
    (Loshchilov and Hutter, "SGDR", 2017). ``train_crop``: side of the training crops in px in the
    first and the last epoch, in steps of 16 between. ``min_scale``: smallest share of a
    picture's area that a crop keeps. ``ema``: decay a step of the averaged weights. With a
    teacher, the loss is ``(1 - distill) * cross-entropy + distill * T² * KL(teacher, student)`` at
    ``T = distill_temperature`` (Hinton et al., 2015) plus ``feature_weight * (1 - cosine)`` between
    its pooled features and a projection of the student's (as in FitNets, Romero et al., 2015).
    """

    epochs: int
    batch: int
    rate: float
    warmup: float
    weight_decay: float
    label_smoothing: float
    ema: float
    train_crop: tuple[int, int]
    min_scale: float
    seed: int
    distill: float
    distill_temperature: float
    feature_weight: float

    def crop_at(self, epoch: int) -> int:
        """Side of the training crops in ``epoch`` (from 0), in px, a multiple of 16."""
        first, last = self.train_crop
        share = epoch / max(1, self.epochs - 1)
        return round((first + (last - first) * share) / 16) * 16

    def rate_at(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""
        if epoch < self.warmup:
            return self.rate * epoch / self.warmup
        share = (epoch - self.warmup) / max(1e-9, self.epochs - self.warmup)
        return float(self.rate * 0.5 * (1 + np.cos(np.pi * min(1.0, share))))


class AugmentedPictures(Dataset[tuple[torch.Tensor, int]]):
    """Random views for one epoch: item ``i`` is ((crop, crop, 3) uint8, i).

    The view depends on seed, epoch and ``i`` alone, whichever loader process draws it: that makes
    a resumed training repeat the interrupted one.
    """

    def __init__(self, pictures: Sequence[Picture], recipe: Recipe, epoch: int) -> None:
        self.pictures, self.seed = pictures, recipe.seed * 1_000_003 + epoch
        crop = recipe.crop_at(epoch)
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(crop, scale=(recipe.min_scale, 1.0), antialias=True),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(self.seed * 2_000_003 + index)
        image = decode(self.pictures[index].path.read_bytes(), MAX_PIXELS)
        return torch.from_numpy(np.asarray(self.augment(image)).copy()), index


class _Order(Sampler[list[int]]):
    """Shuffled batches of one epoch; the last incomplete batch is left out."""

    def __init__(self, size: int, batch: int, seed: int, epoch: int) -> None:
        order = np.random.default_rng([seed, epoch]).permutation(size)
        self.batches = [order[i : i + batch].tolist() for i in range(0, size - batch + 1, batch)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Trainer:
    """Trains ``network`` in place and leaves checkpoint and metrics in ``folder``.

    Args:
        network: the network to train.
        preprocessing: how validation pictures (and the server) see a picture.
        train, val: pictures.
        targets: label → class index.
        recipe: how to train.
        folder: where ``checkpoint.pt`` and ``metrics.csv`` go.
        teacher: logits (N, classes) and pooled features (N, F) of the training pictures, or None.
    """

    def __init__(
        self,
        network: DenseNet,
        preprocessing: Preprocessing,
        train: Sequence[Picture],
        val: Sequence[Picture],
        targets: dict[str, int],
        recipe: Recipe,
        folder: Path,
        teacher: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        if len(train) < recipe.batch:
            raise CommandError(
                f"{len(train)} training pictures are fewer than one batch of {recipe.batch}; "
                "add pictures or lower --batch"
            )
        self.preprocessing, self.recipe, self.folder, self.teacher = preprocessing, recipe, folder, teacher
        self.train_pictures, self.val_pictures, self.targets = train, val, targets
        self.train_targets = torch.tensor([targets[p.label] for p in train])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(device=self.device, memory_format=torch.channels_last)
        modules: list[nn.Module] = [self.network]
        self.projection: nn.Linear | None = None
        if teacher is not None:
            generator = torch.Generator().manual_seed(recipe.seed)
            self.projection = nn.Linear(network.classifier.in_features, teacher[1].shape[1])
            nn.init.normal_(self.projection.weight, std=0.01, generator=generator)
            self.projection.to(self.device)
            modules.append(self.projection)
        decay = [p for m in modules for p in m.parameters() if p.requires_grad and p.ndim > 1]
        keep = [p for m in modules for p in m.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": keep, "weight_decay": 0.0}],
            lr=0.0,
            momentum=0.9,
            nesterov=True,
        )
        ema = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        self.epoch = 0
        self.seconds = 0.0  # of training, over all sittings
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"top1": -1.0, "epoch": -1, "state": {}}

    @property
    def checkpoint(self) -> Path:
        """Where the state after the last complete epoch is."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is complete."""
        part = self.checkpoint.with_suffix(".part")
        torch.save(
            {
                "recipe": {**asdict(self.recipe), "train_crop": list(self.recipe.train_crop)},
                "epoch": self.epoch,
                "seconds": self.seconds,
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "projection": self.projection.state_dict() if self.projection else {},
                "optimizer": self.optimizer.state_dict(),
                "history": self.history,
                "best": self.best,
            },
            part,
        )
        os.replace(part, self.checkpoint)

    def resume(self) -> None:
        """Go on where the checkpoint says.

        Raises:
            CommandError: there is none, or it belongs to another recipe.
        """
        if not self.checkpoint.is_file():
            raise CommandError(f"nothing to resume: no checkpoint at {self.checkpoint}; start without --resume")
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        recipe = {**asdict(self.recipe), "train_crop": list(self.recipe.train_crop)}
        changed = [k for k in recipe if recipe[k] != state["recipe"].get(k)]
        if changed:
            raise CommandError(
                f"the checkpoint was made with another --{changed[0].replace('_', '-')} "
                f"({state['recipe'].get(changed[0])}, now {recipe[changed[0]]}); "
                "give the same flags to resume, or another --out to start anew"
            )
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        if self.projection:
            self.projection.load_state_dict(state["projection"])
        self.optimizer.load_state_dict(state["optimizer"])
        say(f"resuming after epoch {self.epoch} of {self.recipe.epochs}")

    def run(self) -> dict[str, torch.Tensor]:
        """Train the epochs that are left; return the state dict of the best averaged weights."""
        while self.epoch < self.recipe.epochs:
            start = time.monotonic()
            loss = self._train_epoch(self.epoch)
            top1 = self._validate()
            self.epoch += 1
            self.history.append({"epoch": self.epoch, "loss": loss, "val_top1": top1})
            if top1 >= self.best["top1"]:
                state = {k: v.clone() for k, v in self.average.module.state_dict().items()}
                self.best = {"top1": top1, "epoch": self.epoch, "state": state}
            took = time.monotonic() - start
            self.seconds += took
            self.save()
            self._write_metrics()
            say(
                f"epoch {self.epoch}/{self.recipe.epochs}: loss {loss:.3f}, validation top-1 {top1:.3f} "
                f"(best {self.best['top1']:.3f}), {duration(took)}, "
                f"about {duration(took * (self.recipe.epochs - self.epoch))} left"
            )
        if not all(torch.isfinite(tensor).all() for tensor in self.best["state"].values()):
            raise CommandError("the training diverged: the weights are no longer finite; lower --rate")
        return dict(self.best["state"])

    def _train_epoch(self, epoch: int) -> float:
        recipe = self.recipe
        order = _Order(len(self.train_pictures), recipe.batch, recipe.seed, epoch)
        loader = DataLoader(
            AugmentedPictures(self.train_pictures, recipe, epoch),
            batch_sampler=order,
            num_workers=min(4, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
        )
        self.network.train()
        total = 0.0
        progress = Progress(f"epoch {epoch + 1}/{recipe.epochs}", len(order), " batches", every=60)
        for step, (arrays, indices) in enumerate(loader):
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate_at(epoch + step / len(order))
            images = self.preprocessing.to_tensor(arrays.numpy()).to(self.device)  # (B, 3, h, h)
            with torch.autocast(self.device.type, torch.bfloat16):
                pooled, logits = features_and_logits(self.network, images)
                loss = self._loss(pooled, logits, indices)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.average.update_parameters(self.network)
            total += float(loss.detach())
            progress.advance(note=f"loss {total / (step + 1):.3f}")
        return total / len(order)

    def _loss(self, pooled: torch.Tensor, logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        recipe = self.recipe
        targets = self.train_targets[indices].to(self.device)  # (B,)
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        if self.teacher is None or self.projection is None:
            return loss
        t = recipe.distill_temperature
        soft = (self.teacher[0][indices].to(self.device) / t).softmax(dim=1)  # (B, classes)
        divergence = F.kl_div((logits / t).log_softmax(dim=1), soft, reduction="batchmean") * t * t
        features = self.teacher[1][indices].to(self.device)  # (B, F)
        cosine = F.cosine_similarity(self.projection(pooled).float(), features, dim=1).mean()
        return (1 - recipe.distill) * loss + recipe.distill * divergence + recipe.feature_weight * (1 - cosine)

    def _validate(self) -> float:
        if not self.val_pictures:
            return 0.0
        network = self.average.module.eval()
        logits = predict_logits(network, [p.path for p in self.val_pictures], self.preprocessing, self.device)
        targets = torch.tensor([self.targets[p.label] for p in self.val_pictures])
        return float((logits.argmax(dim=1) == targets).float().mean())

    def _write_metrics(self) -> None:
        with (self.folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=["epoch", "loss", "val_top1"])
            writer.writeheader()
            writer.writerows(self.history)


def predict_logits(
    network: DenseNet, paths: Sequence[Path], preprocessing: Preprocessing, device: torch.device, what: str = ""
) -> torch.Tensor:
    """Logits (N, classes) in float32 of picture files, with the server's exact preprocessing."""
    rows = []
    progress = Progress(what, len(paths), every=20 if what else 3600)
    with torch.inference_mode():
        for images in exact_batches(paths, preprocessing, batch=32):
            rows.append(network(images.to(device)).float().cpu())
            progress.advance(len(images))
    return torch.cat(rows)  # (N, classes)


def train_classifier(
    features: torch.Tensor,
    targets: torch.Tensor,
    num_classes: int,
    steps: int = 300,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> nn.Linear:
    """A linear classifier on frozen features, trained on all of them at once.

    Args:
        features: (N, F) pooled features.
        targets: (N,) class indices.
        num_classes: outputs.
        steps: optimizer steps.
        weight_decay: L2 penalty of AdamW.
        seed: of the initial weights.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-3)  # (F,), (F,)
    scaled = (features - mean) / std  # (N, F)
    torch.manual_seed(seed)
    classifier = nn.Linear(features.shape[1], num_classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    progress = Progress("training the classifier", steps)
    for _ in range(steps):
        order = torch.randperm(len(scaled))[:4096]
        loss = F.cross_entropy(classifier(scaled[order]), targets[order], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress.advance()
    with torch.no_grad():  # fold the scaling into the layer: W(x - m)/s + b
        weight = classifier.weight / std  # (C, F)
        classifier.bias.sub_(weight @ mean)
        classifier.weight.copy_(weight)
    return classifier
