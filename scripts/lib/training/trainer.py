"""Epochs: a network, pictures and a recipe → trained weights, with a checkpoint after every epoch."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models.densenet import DenseNet

from handler.images import decode
from handler.preprocessing import Preprocessing
from scripts.lib.console import CommandError, Progress, duration, say
from scripts.lib.model_folder import write_atomically
from scripts.lib.training.dataset import MAX_PIXELS, Picture
from scripts.lib.training.distillation import Teacher, resized
from scripts.lib.training.features import autocast, autocast_type, batches, maps_and_logits

METRICS = "metrics.csv"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Every field is a flag of ``train.py``.

    ``epochs``: passes over the training pictures. ``batch``: pictures a step. ``rate``: peak
    learning rate, reached linearly after ``warmup`` epochs, then cosine decay to zero (Loshchilov
    and Hutter, "SGDR", 2017). ``ema``: decay a step of the averaged weights. ``train_crop``: side
    of the training crops in px in the first and the last epoch, in steps of 32 between (a DenseNet
    halves its maps five times). ``min_scale``: smallest share of a picture's area that a crop
    keeps. ``balance``: see :func:`epoch_order`. With a teacher, the loss is ``(1 - distill) *
    cross-entropy + distill *`` :func:`distillation_loss` plus ``feature_weight * (1 - cosine)``
    between its features at each place of the crop and a projection of the student's (as in
    FitNets, Romero et al., 2015). ``teacher_crop``: side in px at which the teacher sees each view
    itself; 0: it saw every picture once. ``mixup``: share of the pictures of a batch that are
    blended with another, in a proportion that is drawn evenly from 0 to 1 (Zhang et al., "mixup",
    2018). ``epoch_pictures``: pictures an epoch shows; 0: as many as there are.
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
    balance: float
    mixup: float = 0.0
    teacher_crop: int = 0
    epoch_pictures: int = 0

    def crop_at(self, epoch: int) -> int:
        """Side of the training crops in ``epoch`` (from 0), in px."""
        first, last = self.train_crop
        share = epoch / max(1, self.epochs - 1)
        step = round((first + (last - first) * share) / 32) * 32
        return min(max(step, min(self.train_crop)), max(self.train_crop))

    def rate_at(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""
        if epoch < self.warmup:
            return self.rate * epoch / self.warmup
        share = (epoch - self.warmup) / max(1e-9, self.epochs - self.warmup)
        return float(self.rate * 0.5 * (1 + np.cos(np.pi * min(1.0, share))))


class AugmentedPictures(Dataset[tuple[torch.Tensor, int, torch.Tensor]]):
    """Random views for one epoch: item ``i`` is ((crop, crop, 3) uint8, picture, (4,) float32 box).

    The box says which part of the picture the view shows: left, top, right, bottom as shares of its
    width and height; a mirrored view has its left at the right. The view depends on seed, epoch and
    ``i`` alone, whichever loader process draws it: that makes a resumed training repeat the
    interrupted one.
    """

    def __init__(self, pictures: Sequence[Picture], order: np.ndarray, recipe: Recipe, epoch: int) -> None:
        self.pictures, self.order, self.seed = pictures, order, recipe.seed * 1_000_003 + epoch
        self.crop = max(recipe.crop_at(epoch), recipe.teacher_crop)
        self.scale = [recipe.min_scale, 1.0]
        self.colour = transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        torch.manual_seed(self.seed * 2_000_003 + index)
        picture = int(self.order[index])
        image = decode(self.pictures[picture].path.read_bytes(), MAX_PIXELS)
        top, left, height, width = transforms.RandomResizedCrop.get_params(image, self.scale, [3 / 4, 4 / 3])
        box = (left, top, left + width, top + height)
        view = image.resize((self.crop, self.crop), Image.Resampling.BILINEAR, box=box)
        shares = torch.tensor(box) / torch.tensor([*image.size, *image.size])  # (4,)
        if torch.rand(()) < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            shares = shares[[2, 1, 0, 3]]
        return torch.from_numpy(np.array(self.colour(view))), picture, shares


def epoch_order(targets: np.ndarray, balance: float, seed: int, epoch: int, size: int = 0) -> np.ndarray:
    """Which pictures an epoch shows, shuffled; classes weighted by ``balance``.

    Args:
        targets: (N,) class indices.
        balance: 0, every picture once; 1, every class as often; a class of n pictures is shown in
            proportion to n^(1 - balance) (Mahajan et al., "Exploring the Limits of Weakly
            Supervised Pretraining", 2018, use the square root: 0.5).
        seed, epoch: of the shuffling.
        size: how many pictures; 0: as many as there are.

    Returns:
        (size,) indices; within a class no picture is shown twice more often than another.
    """
    counts = np.bincount(targets)
    weights = np.where(counts > 0, np.maximum(counts, 1) ** (1 - balance), 0)
    bounds = np.round(np.cumsum(weights) / weights.sum() * (size or len(targets))).astype(int)
    random = np.random.default_rng([seed, epoch])
    chosen = []
    for target, wanted in enumerate(np.diff(bounds, prepend=0)):
        members = np.flatnonzero(targets == target)
        rounds = [random.permutation(members) for _ in range(-(-wanted // max(1, len(members))))]
        chosen += [np.concatenate(rounds)[:wanted]] if rounds else []
    return random.permutation(np.concatenate(chosen))


def blend(
    images: torch.Tensor, labels: torch.Tensor, share: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend pictures of a batch, each with another one of it.

    Args:
        images: (B, 3, H, W).
        labels: (B, C) probabilities.
        share: of the pictures that are blended, 0 to 1.
        generator: draws which ones, and how much is kept of each: 0 to 1, evenly.

    Returns:
        Images and labels, (B, 3, H, W) and (B, C).
    """
    kept = torch.rand(len(images), generator=generator)  # (B,)
    kept = torch.where(torch.rand(len(images), generator=generator) < share, kept, torch.ones(())).to(images.device)
    mixed_images = images.flip(0).lerp(images, kept[:, None, None, None])
    return mixed_images, labels.flip(0).lerp(labels, kept[:, None])


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² * KL(teacher, student)`` at temperature T (Hinton et al., "Distilling the Knowledge", 2015).

    Args:
        logits, teacher: (B, C).
        temperature: T, above 0.
    """
    soft = (teacher / temperature).softmax(dim=1)  # (B, C)
    return F.kl_div((logits / temperature).log_softmax(dim=1), soft, reduction="batchmean") * temperature**2


class Trainer:
    """Trains ``network`` in place and leaves checkpoint and metrics in ``folder``.

    Args:
        network: the network to train.
        preprocessing: how validation pictures (and the server) see a picture.
        train, val: pictures.
        targets: label → class index.
        recipe: how to train.
        folder: where ``checkpoint.pt`` and ``metrics.csv`` go.
        teacher: answers for the training pictures, or None.
        split: what the sides of the data depend on: ``val``, ``test``, and ``pictures``, a digest of them.
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
        teacher: Teacher | None = None,
        split: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if len(train) < recipe.batch:
            raise CommandError(
                f"{len(train)} training pictures are fewer than one batch of {recipe.batch}; "
                "add pictures or lower --batch"
            )
        if 0 < recipe.epoch_pictures < recipe.batch:
            raise CommandError(
                f"--epoch-pictures {recipe.epoch_pictures} is less than one batch of {recipe.batch}; raise it"
            )
        if recipe.mixup and teacher is not None and not recipe.teacher_crop:
            raise CommandError(
                "--mixup blends pictures, and the teacher saw them unblended; give --teacher-crop PX too, "
                "so that it sees what the student sees"
            )
        self.preprocessing, self.recipe, self.folder, self.teacher = preprocessing, recipe, folder, teacher
        self.settings = {**asdict(recipe), "train_crop": list(recipe.train_crop), **split}
        self.train_pictures, self.val_pictures, self.targets = train, val, targets
        self.train_targets = torch.tensor([targets[p.label] for p in train])  # (N,)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(device=self.device, memory_format=torch.channels_last)
        modules: list[nn.Module] = [self.network]
        self.projection: nn.Conv2d | None = None
        if teacher is not None:
            generator = torch.Generator().manual_seed(recipe.seed)
            self.projection = nn.Conv2d(network.classifier.in_features, teacher.depth, 1)
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
        # float16 gradients underflow without a scale; for the other types it does nothing
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast_type(self.device) == torch.float16)
        self.epoch = 0
        self.seconds = 0.0  # of training, over all sittings
        self.history: list[dict[str, float]] = []  # rows of metrics.csv
        self.best: dict[str, Any] = {"top1": -1.0, "epoch": -1, "state": {}}

    @property
    def checkpoint(self) -> Path:
        """Where the state after the last complete epoch is."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is complete."""
        state = io.BytesIO()  # torch itself says of a full disk that a file write failed
        torch.save(
            {
                "recipe": self.settings,
                "epoch": self.epoch,
                "seconds": self.seconds,
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "projection": self.projection.state_dict() if self.projection else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": self.history,
                "best": self.best,
            },
            state,
        )
        write_atomically(self.checkpoint, state.getvalue())

    def resume(self) -> None:
        """Go on where the checkpoint says.

        Raises:
            CommandError: there is none, or it belongs to another recipe or other data.
        """
        if not self.checkpoint.is_file():
            raise CommandError(f"nothing to resume: no checkpoint at {self.checkpoint}; start without --resume")
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        recipe = self.settings
        changed = [k for k in recipe if recipe[k] != state["recipe"].get(k)]
        if changed == ["pictures"]:
            raise CommandError(
                f"the pictures aren't those that the checkpoint {self.checkpoint} was trained with, and some of them "
                "would be tested on; restore DATA and --labels to resume, or give another --out to start anew"
            )
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
        self.scaler.load_state_dict(state["scaler"])
        say(f"resuming after epoch {self.epoch} of {self.recipe.epochs}")

    def run(self) -> dict[str, torch.Tensor]:
        """Train the epochs that are left; return the state dict of the best averaged weights."""
        while self.epoch < self.recipe.epochs:
            start = time.monotonic()
            loss = self._train_epoch(self.epoch)
            top1, val_loss = self._validate()
            took = time.monotonic() - start
            self.history.append(
                {
                    "epoch": self.epoch + 1,
                    "crop": self.recipe.crop_at(self.epoch),
                    "loss": round(loss, 5),
                    "val_loss": round(val_loss, 5),
                    "val_top1": round(top1, 5),
                    "seconds": round(took, 1),
                }
            )
            self.epoch += 1
            self.seconds += took
            if top1 >= self.best["top1"]:
                state = {k: v.clone() for k, v in self.average.module.state_dict().items()}
                self.best = {"top1": top1, "epoch": self.epoch, "state": state}
            self.save()
            write_metrics(self.folder, self.history)
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
        order = epoch_order(self.train_targets.numpy(), recipe.balance, recipe.seed, epoch, recipe.epoch_pictures)
        loader = DataLoader(
            AugmentedPictures(self.train_pictures, order, recipe, epoch),
            batch_size=recipe.batch,
            drop_last=True,
            num_workers=min(4, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
        )
        self.network.train()
        total = 0.0
        progress = Progress(f"epoch {epoch + 1}/{recipe.epochs}", len(loader), " batches", every=60)
        for step, (arrays, indices, boxes) in enumerate(loader):
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate_at(epoch + step / len(loader))
            images = self.preprocessing.to_tensor(arrays.numpy()).to(self.device)  # (B, 3, h, h)
            labels = F.one_hot(self.train_targets[indices], len(self.targets)).float().to(self.device)  # (B, C)
            if recipe.mixup:
                generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + epoch) * 2_000_003 + step)
                images, labels = blend(images, labels, recipe.mixup, generator)
            shown = resized(images, recipe.crop_at(epoch)).contiguous(memory_format=torch.channels_last)
            with autocast(self.device):
                maps, logits = maps_and_logits(self.network, shown)
            taught = self.teacher.targets(images, indices, boxes, maps.shape[2]) if self.teacher else None
            with autocast(self.device):
                loss = self._loss(maps, logits, labels, taught)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update_parameters(self.network)
            total += float(loss.detach())
            progress.advance(note=f"loss {total / (step + 1):.3f}")
        return total / len(loader)

    def _loss(
        self,
        maps: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        taught: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        recipe = self.recipe
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if taught is None or self.projection is None:
            return loss
        features, answers = taught  # (B, D, h, h), (B, classes)
        divergence = distillation_loss(logits, answers.to(self.device), recipe.distill_temperature)
        cosine = F.cosine_similarity(self.projection(maps).float(), features.to(self.device), dim=1).mean()
        return (1 - recipe.distill) * loss + recipe.distill * divergence + recipe.feature_weight * (1 - cosine)

    def _validate(self) -> tuple[float, float]:
        """Top-1 accuracy and cross-entropy of the averaged weights on the validation pictures."""
        if not self.val_pictures:
            return 0.0, 0.0
        network = self.average.module.eval()
        with autocast(self.device):
            logits = predict_logits(network, [p.path for p in self.val_pictures], self.preprocessing, self.device)
        targets = torch.tensor([self.targets[p.label] for p in self.val_pictures])
        return top1_and_loss(logits, targets)


def top1_and_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Top-1 accuracy, 0 to 1, and cross-entropy of logits (N, C) with class indices (N,)."""
    right = (logits.argmax(dim=1) == targets).float().mean()
    return float(right), float(F.cross_entropy(logits, targets))


def write_metrics(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write ``metrics.csv``, a line for each epoch."""
    with (folder / METRICS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def predict_logits(
    network: DenseNet, paths: Sequence[Path], preprocessing: Preprocessing, device: torch.device, what: str = ""
) -> torch.Tensor:
    """Logits (N, classes) in float32 of picture files, with the server's exact preprocessing."""
    rows = []
    progress = Progress(what, len(paths), every=20 if what else 3600)
    with torch.inference_mode():
        for images in batches(paths, preprocessing):
            rows.append(network(images.to(device)).float().cpu())
            progress.advance(len(images))
    return torch.cat(rows)  # (N, classes)


def train_classifier(
    features: torch.Tensor,
    targets: torch.Tensor,
    num_classes: int,
    *,
    teacher: torch.Tensor | None = None,
    distill: float = 0.7,
    temperature: float = 2.0,
    label_smoothing: float = 0.05,
    steps: int = 300,
    weight_decay: float = 1e-4,
    seed: int = 0,
    measure: Callable[[nn.Linear], tuple[float, float]] | None = None,
) -> tuple[nn.Linear, list[dict[str, float]]]:
    """A linear classifier on frozen features, by AdamW on batches of 4,096.

    Args:
        features: (N, F) pooled features.
        targets: (N,) class indices.
        num_classes: outputs.
        teacher: logits (N, num_classes) of a teacher; the loss is then the one of :class:`Recipe`.
        distill, temperature, label_smoothing: as in :class:`Recipe`.
        steps: optimizer steps.
        weight_decay: L2 penalty of AdamW.
        seed: of the order.
        measure: gives validation accuracy and loss of a classifier, for the history.

    Returns:
        The classifier, and a row of ``metrics.csv`` for each tenth of the steps.
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
    start, total = time.monotonic(), 0.0
    history: list[dict[str, float]] = []

    def folded() -> nn.Linear:
        """The classifier with the scaling in it: W(x - m)/s + b."""
        layer = nn.Linear(features.shape[1], num_classes)
        with torch.no_grad():
            layer.weight.copy_(classifier.weight / std)
            layer.bias.copy_(classifier.bias - layer.weight @ mean)
        return layer

    for step in range(1, steps + 1):
        order = torch.randperm(len(scaled))[:4096]
        logits = classifier(scaled[order])  # (B, C)
        loss = F.cross_entropy(logits, targets[order], label_smoothing=label_smoothing)
        if teacher is not None:
            loss = (1 - distill) * loss + distill * distillation_loss(logits, teacher[order], temperature)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        progress.advance()
        if step * 10 // steps > (step - 1) * 10 // steps:
            top1, val_loss = measure(folded()) if measure else (0.0, 0.0)
            history.append(
                {
                    "epoch": len(history) + 1,
                    "loss": round(total * 10 / steps, 5),
                    "val_loss": round(val_loss, 5),
                    "val_top1": round(top1, 5),
                    "seconds": round(time.monotonic() - start, 1),
                }
            )
            start, total = time.monotonic(), 0.0
    return folded(), history
