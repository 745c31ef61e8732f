"""The Python client of the inference API: pictures in, typed answers out, blocking or asynchronous.

::

    from scripts.client import DenseNetClient

    with DenseNetClient("http://127.0.0.1:5000") as client:
        print(client.predict("dog.jpg").label)
        for result in client.predict_many(paths, topk=3, concurrency=8):
            print(result.picture, result.answer or result.error)

It needs httpx and, of this repository, what it imports. docs/client.md shows all of it.
"""

from handler.topk import Prediction
from scripts.client.answers import Answer, ClientError, Picture, Refused, Result, Unavailable, Unreadable
from scripts.client.asynchronous import AsyncDenseNetClient
from scripts.client.blocking import DenseNetClient

__all__ = [
    "Answer",
    "AsyncDenseNetClient",
    "ClientError",
    "DenseNetClient",
    "Picture",
    "Prediction",
    "Refused",
    "Result",
    "Unavailable",
    "Unreadable",
]
