"""The alternatives that the benchmark measures, each a program of its own, as its documentation shows it.

They take from the environment ``BENCHMARK_MODEL`` (a model folder), ``BENCHMARK_PORT``,
``BENCHMARK_WORKERS``, ``BENCHMARK_THREADS`` (a worker; 0: torch's own number) and
``BENCHMARK_LOADED`` (a folder in which a worker that has loaded the model makes a file named after
its process), and answer ``POST /predict`` with a multipart ``file`` by
``{"label": …, "probability": …}``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from handler.network import load_network
from scripts.lib.model_folder import read_model_folder

MODEL = Path(os.environ.get("BENCHMARK_MODEL", ""))
PORT = int(os.environ.get("BENCHMARK_PORT", "0"))
WORKERS = int(os.environ.get("BENCHMARK_WORKERS", "1"))
THREADS = int(os.environ.get("BENCHMARK_THREADS", "0"))
LOADED = Path(os.environ.get("BENCHMARK_LOADED", ""))


class Classifier:
    """Eager PyTorch behind torchvision's transforms: what tutorials show, and what all alternatives share."""

    def __init__(self) -> None:
        if THREADS:
            torch.set_num_threads(THREADS)
        model = read_model_folder(MODEL)
        card = model.card
        self.labels = model.labels
        self.temperature = card.temperature
        self.network = load_network(card, model.weights, torch.device("cpu"))
        self.transform = transforms.Compose(
            [
                transforms.Resize(card.resize),
                transforms.CenterCrop(card.crop),
                transforms.ToTensor(),
                transforms.Normalize(card.mean, card.std),
            ]
        )
        (LOADED / str(os.getpid())).touch()

    def __call__(self, content: bytes) -> dict[str, object]:
        """The best label of a picture file and its probability, 0 to 1."""
        image = Image.open(io.BytesIO(content)).convert("RGB")
        with torch.inference_mode():
            logits = self.network(self.transform(image)[None])  # (1, classes)
        best = (logits / self.temperature).softmax(dim=1)[0].max(dim=0)
        return {"label": self.labels[int(best.indices)], "probability": round(float(best.values), 5)}
