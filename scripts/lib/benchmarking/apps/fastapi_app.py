"""FastAPI on uvicorn, as its documentation shows file uploads: a plain function runs in the thread pool."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, UploadFile

from scripts.lib.benchmarking.apps import Classifier

app = FastAPI()
classify = Classifier()


@app.post("/predict")
def predict(file: UploadFile) -> Any:
    """Answer a multipart ``file``."""
    return classify(file.file.read())
