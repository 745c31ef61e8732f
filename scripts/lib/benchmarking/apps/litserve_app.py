"""LitServe: setup, decode, predict and encode in processes of their own behind one FastAPI server."""

from __future__ import annotations

from typing import Any

import litserve
from fastapi import UploadFile

from scripts.lib.benchmarking.apps import PORT, WORKERS, Classifier


class ImageAPI(litserve.LitAPI):
    """The classifier, one a worker."""

    def setup(self, device: str) -> None:
        """Load the network, once a worker."""
        self.classify = Classifier()

    def decode_request(self, request: UploadFile) -> bytes:
        """The uploaded file's bytes."""
        content: bytes = request["file"].file.read()
        return content

    def predict(self, content: bytes) -> dict[str, object]:
        """Classify."""
        return self.classify(content)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(ImageAPI(), accelerator="cpu", workers_per_device=WORKERS, timeout=120)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
