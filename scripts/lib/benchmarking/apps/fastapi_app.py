"""FastAPI on uvicorn, as its documentation shows file uploads: a plain function runs in the thread pool."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from scripts.lib.benchmarking.apps import PORT, WORKERS, Classifier

app = FastAPI()
classify = Classifier()


@app.post("/predict")
def predict(file: UploadFile) -> Any:
    """Answer a multipart ``file``."""
    return classify(file.file.read())


if __name__ == "__main__":
    uvicorn.run(
        "scripts.lib.benchmarking.apps.fastapi_app:app",
        host="127.0.0.1",
        port=PORT,
        workers=WORKERS,
        log_level="warning",
    )
