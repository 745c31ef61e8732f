"""Flask, as its documentation shows file uploads, on its own server: one process, a thread a request."""

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request

from scripts.lib.benchmarking.apps import PORT, Classifier

app = Flask(__name__)
classify = Classifier()


@app.post("/predict")
def predict() -> Any:
    """Answer a multipart ``file``."""
    return jsonify(classify(request.files["file"].read()))


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=PORT, threaded=True)
