"""One run of ``train.py``: data → split → network → weights, labels and card in a folder."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.densenet import DenseNet

from handler.card import ARCHITECTURES, Architecture, ModelCard, sha256_of
from handler.network import build_network, fit_weights, load_network, read_weights
from handler.preprocessing import Preprocessing
from scripts.lib.console import CommandError, say
from scripts.lib.evaluation import Evaluation, fit_temperature
from scripts.lib.model_folder import (
    ModelFolder,
    json_bytes,
    read_json,
    read_model_folder,
    write_atomically,
    write_model_folder,
)
from scripts.lib.paths import CACHE
from scripts.lib.precision import MIN_PICTURES, record
from scripts.lib.reporting.page import write_report
from scripts.lib.training.dataset import (
    OXFORD_PETS,
    Picture,
    Split,
    check_pictures,
    class_counts,
    find_pictures,
    oxford_pets,
    split_pictures,
)
from scripts.lib.training.distillation import LiveTeacher, Teacher, TeacherMaps, teacher_maps
from scripts.lib.training.features import cached_features
from scripts.lib.training.trainer import Recipe, Trainer, predict_logits, top1_and_loss, train_classifier, write_metrics

REPORT = "report.html"


def train(args: argparse.Namespace) -> ModelFolder:
    """Train as the command line says and write the model folder.

    Raises:
        CommandError, CardError: the data, the start weights or the flags don't fit together.
    """
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    if (out / "checkpoint.pt").exists() and not args.resume:
        raise CommandError(f"{out} holds a training already; continue it with --resume, or choose another --out")
    mapping = read_json(args.labels) if args.labels else None
    pictures = _checked(args, _found(args, mapping), out)
    split = split_pictures(pictures, args.val, args.test, args.seed)
    labels = sorted({p.label for p in pictures})
    targets = {label: index for index, label in enumerate(labels)}
    say(
        f"{len(pictures)} pictures of {len(labels)} classes: "
        f"{len(split.train)} training, {len(split.val)} validation, {len(split.test)} test"
    )
    architecture = _architecture(args)
    card = ModelCard(
        name=args.name or out.name,
        architecture=architecture,
        num_classes=len(labels),
        resize=args.resize or round(args.crop * 8 / 7),
        crop=args.crop,
    )
    preprocessing = Preprocessing.of(card)
    torch.manual_seed(args.seed)
    network = build_network(architecture, len(labels))
    if args.start != "none":
        _start_from(network, _start_file(args))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = _teacher(args, split.train, labels, device) if args.teacher else None
    if args.train == "classifier":
        start = time.monotonic()
        history = _train_last_layer(network.to(device), args, preprocessing, split, targets, teacher)
        write_metrics(out, history)
        state, seconds = network.state_dict(), time.monotonic() - start
    else:
        chosen = {f.name: getattr(args, f.name) for f in fields(Recipe) if f.name != "train_crop"}
        recipe = Recipe(train_crop=args.train_crop or (args.crop, args.crop), **chosen)
        data = {"val": str(args.val), "test": str(args.test), "pictures": split.digest()}
        trainer = Trainer(network, preprocessing, split.train, split.val, targets, recipe, out, teacher, data)
        if args.resume:
            trainer.resume()
        state = trainer.run()
        history, seconds = trainer.history, trainer.seconds
    if args.half:  # what is measured is what will be stored
        state = {name: t.half().to(t.dtype) if t.is_floating_point() else t for name, t in state.items()}
    network.load_state_dict(state)
    card = replace(
        card,
        dataset=args.about or (OXFORD_PETS.about if args.dataset else ""),
        licence=args.licence,
        training={
            "command": shlex.join(["python3", "scripts/train.py", *(a for a in sys.argv[1:] if a != "--resume")]),
            "pictures": {"train": len(split.train), "validation": len(split.val), "test": len(split.test)},
            "classes": class_counts(split.train),
            "split_seed": args.seed,
            "start": args.start if args.start in ("none", "imagenet") else Path(args.start).name,
            "teacher": args.teacher.name if args.teacher else None,
            "duration_s": round(seconds),
            "parameters": sum(p.numel() for p in network.parameters()),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
            },
        },
    )
    card, evaluation = _measure(network.eval().to(device), card, split, targets, device)
    folder = write_model_folder(out, state, card, labels, half=args.half)
    pictures = [*split.test, *split.val, *split.train][: max(MIN_PICTURES, len(split.test))]
    if len(pictures) >= MIN_PICTURES:
        folder = record(folder, pictures)
    if evaluation:
        write_report(out / REPORT, evaluation, history)
        say(f"report: {out / REPORT}")
    return folder


def _found(args: argparse.Namespace, labels: dict[str, str] | None) -> list[Picture]:
    """The pictures that the command line names, not yet opened."""
    if not args.data and not args.dataset:
        raise CommandError("no pictures: give a folder with one folder of pictures per class, or --dataset oxford-pets")
    pictures = oxford_pets(CACHE / "datasets", labels) if args.dataset else []
    return pictures + (find_pictures(args.data, labels) if args.data else [])


def _checked(args: argparse.Namespace, pictures: list[Picture], out: Path) -> list[Picture]:
    """The pictures that decode; what was found is kept, so that --resume doesn't decode them again.

    It reads them again: their content decides on which side of the split they are.
    """
    record = out / "pictures.json"
    if args.resume and record.is_file():
        known = {entry["path"]: entry for entry in json.loads(record.read_text(encoding="utf-8"))}
        return [
            replace(p, digest=sha256_of(p.path), dhash=known[str(p.path)]["dhash"])
            for p in pictures
            if str(p.path) in known
        ]
    checked = check_pictures(pictures)
    write_atomically(record, json_bytes([{"path": str(p.path), "digest": p.digest, "dhash": p.dhash} for p in checked]))
    return checked


def _architecture(args: argparse.Namespace) -> Architecture:
    if args.arch != "compact":
        return replace(ARCHITECTURES[args.arch], batch_norm_eps=args.eps)
    return Architecture("compact", args.growth_rate, args.blocks, args.init_features, batch_norm_eps=args.eps)


def _start_file(args: argparse.Namespace) -> Path:
    if args.start != "imagenet":
        return Path(args.start)
    from scripts.lib.weights import imagenet_weights

    if args.arch == "compact":
        raise CommandError("there are no ImageNet weights for --arch compact; choose densenet121, 161, 169 or 201")
    return imagenet_weights(args.arch)


def _start_from(network: DenseNet, path: Path) -> None:
    """Take over ``path``; its classifier only where it has as many classes."""
    state = read_weights(path)
    own = {f"classifier.{n}": p.detach() for n, p in network.classifier.named_parameters()}
    if any(n not in state or state[n].shape != p.shape for n, p in own.items()):
        state.update(own)
    fit_weights(network, state, f"the weights in {path.name}")


def _train_last_layer(
    network: DenseNet,
    args: argparse.Namespace,
    preprocessing: Preprocessing,
    split: Split,
    targets: dict[str, int],
    teacher: Teacher | None,
) -> list[dict[str, float]]:
    """Train the classifier on frozen features; return the rows of ``metrics.csv``."""
    if args.start == "none":
        raise CommandError("--train classifier needs trained features; give --start imagenet or a weights file")
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def featured(pictures: list[Picture]) -> tuple[torch.Tensor, torch.Tensor]:
        features = cached_features(network, preprocessing, pictures, CACHE / "features")  # (N, F)
        return features, torch.tensor([targets[p.label] for p in pictures])  # (N, F), (N,)

    measure = None
    if split.val:
        val_features, val_targets = featured(split.val)

        def measure(classifier: nn.Linear) -> tuple[float, float]:
            with torch.inference_mode():
                return top1_and_loss(classifier(val_features), val_targets)

    classifier, history = train_classifier(
        *featured(split.train),
        len(targets),
        teacher=teacher.whole() if isinstance(teacher, TeacherMaps) else None,
        distill=args.distill,
        temperature=args.distill_temperature,
        label_smoothing=args.label_smoothing,
        seed=args.seed,
        measure=measure,
    )
    network.classifier.load_state_dict(classifier.state_dict())
    return history


def _teacher(args: argparse.Namespace, pictures: list[Picture], labels: list[str], device: torch.device) -> Teacher:
    """The teacher of the command line, for the training pictures."""
    if args.teacher_crop and args.train == "classifier":
        raise CommandError("--teacher-crop is for --train all: a classifier is trained on whole pictures; leave it out")
    teacher = read_model_folder(args.teacher)
    if teacher.labels != labels:
        raise CommandError(f"the teacher {args.teacher} has other labels than the data; train it on the same classes")
    network = load_network(teacher.card, teacher.weights, device)
    preprocessing = Preprocessing.of(teacher.card)
    if args.teacher_crop:
        return LiveTeacher(network, preprocessing, pictures, args.teacher_crop, CACHE / "maps")
    return teacher_maps(network, preprocessing, pictures, CACHE / "maps")


def _measure(
    network: DenseNet, card: ModelCard, split: Split, targets: dict[str, int], device: torch.device
) -> tuple[ModelCard, Evaluation | None]:
    """The card with the temperature, fitted on the validation pictures, and the figures on the test pictures."""

    def logits_of(pictures: list[Picture], what: str) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = torch.tensor([targets[p.label] for p in pictures])
        return predict_logits(network, [p.path for p in pictures], Preprocessing.of(card), device, what), wanted

    if split.val:
        card = replace(card, temperature=round(fit_temperature(*logits_of(split.val, "calibrating")), 4))
    if not split.test:
        return card, None
    logits, wanted = logits_of(split.test, "testing")
    evaluation = Evaluation(card, list(targets), split.test, logits / card.temperature, wanted)
    sources = evaluation.sources()
    accuracy = {"test": evaluation.total()} | (sources if len(sources) > 1 else {})
    card = replace(card, accuracy=accuracy)
    return card, replace(evaluation, card=card)
