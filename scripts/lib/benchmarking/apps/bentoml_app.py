"""BentoML: a service class; ``bentoml serve`` starts its workers."""

from __future__ import annotations

from pathlib import Path

import bentoml

from scripts.lib.benchmarking.apps import WORKERS, Classifier


@bentoml.service(workers=WORKERS, traffic={"timeout": 120})
class ImageService:
    """The classifier, one a worker."""

    def __init__(self) -> None:
        self.classify = Classifier()

    @bentoml.api
    def predict(self, file: Path) -> dict[str, object]:
        """Answer a multipart ``file``, which BentoML has written to disk."""
        return self.classify(file.read_bytes())
