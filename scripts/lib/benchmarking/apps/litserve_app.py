"""LitServe: decode, predict and encode in processes of their own behind one FastAPI server."""

# No "from __future__ import annotations": LitServe reads the annotation of decode_request as the server starts,
# and takes a form only for this very class.

import litserve
from fastapi import Request

from scripts.lib.benchmarking.apps import PORT, WORKERS, Classifier


class ImageAPI(litserve.LitAPI):
    """The classifier, one a worker."""

    def setup(self, device: str) -> None:
        """Load the network, once a worker."""
        self.classify = Classifier()

    def decode_request(self, request: Request) -> bytes:
        """The uploaded file's bytes; LitServe has parsed the form."""
        content: bytes = request["file"].file.read()
        return content

    def predict(self, content: bytes) -> dict[str, object]:
        """Classify."""
        return self.classify(content)


if __name__ == "__main__":
    server = litserve.LitServer(ImageAPI(), accelerator="cpu", workers_per_device=WORKERS, timeout=120)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
