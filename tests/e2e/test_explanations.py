"""Explanations from the real server: every form of request, beside predictions, and their price."""

from __future__ import annotations

import base64
import io
import re
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from scripts.lib.model_folder import read_model_folder
from scripts.lib.paths import BUNDLED, ROOT
from tests.support.documents import check, steps
from tests.support.pictures.golden import CHELSEA, DOG, PACKAGED
from tests.support.servers.running import Running

TIMEOUT_S = 120
PICTURE = CHELSEA.read_bytes()
ENCODED = base64.b64encode(PICTURE).decode()
CARD = read_model_folder(BUNDLED).card
MOST = 3
"""What an explanation may cost, in predictions."""
PAIRS = 25


def explain(server: Running, data: bytes = PICTURE, **headers: str) -> requests.Response:
    """``curl -T picture``."""
    return requests.put(f"{server.url}/explanations/densenet", data=data, headers=headers, timeout=TIMEOUT_S)


def post(server: Running, route: str = "/explanations/densenet", **arguments: Any) -> requests.Response:
    """A multipart form or JSON."""
    return requests.post(server.url + route, timeout=TIMEOUT_S, **arguments)


FORMS: dict[str, Callable[[Running], requests.Response]] = {
    "post-body": lambda s: post(s, data=PICTURE),
    "version-route": lambda s: post(s, "/explanations/densenet/1.0", data=PICTURE),
    **{
        f"multipart-{name}": lambda s, name=name: post(s, files={name: ("c.png", PICTURE)})  # type: ignore[misc]
        for name in ("file", "data", "body")
    },
    "json": lambda s: post(s, json={"data": ENCODED}),
    "named-method": lambda s: post(s, files={"file": PICTURE}, data={"method": "grad-cam"}),
}


@pytest.mark.parametrize("send", FORMS.values(), ids=FORMS.keys())
def test_every_form_is_explained_alike(server: Running, send: Callable[[Running], requests.Response]) -> None:
    answer, expected = send(server), explain(server)
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected.json()


def test_what_is_explained_is_the_prediction(server: Running) -> None:
    answer = explain(server)
    assert answer.headers["content-type"] == "application/json"
    explanation = answer.json()
    prediction = requests.put(server.predictions, data=PICTURE, timeout=TIMEOUT_S).json()
    assert {key: explanation[key] for key in prediction} == prediction
    assert explanation["method"] == "grad-cam"
    assert [len(row) for row in explanation["heat_map"]] == [explanation["width"]] * explanation["height"]
    assert explanation["picture"] == [451, 300]


def test_the_picture_with_the_heat_map(server: Running) -> None:
    answer = explain(server, Accept="image/png")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("PNG", (2 * CARD.crop, 2 * CARD.crop))


def test_integrated_gradients_on_request(server: Running) -> None:
    answer = post(server, json={"data": ENCODED, "method": "integrated-gradients", "target": 3})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["index"], answer.json()["method"]) == (3, "integrated-gradients")
    assert (answer.json()["width"], answer.json()["height"]) == (CARD.crop, CARD.crop)


def test_kserves_explain_route(server: Running) -> None:
    body = {"instances": [{"b64": ENCODED}, {"data": ENCODED}]}
    answer = post(server, "/v1/models/densenet:explain", json=body)
    assert answer.json() == {"explanations": [explain(server).json()] * 2}


def test_predictions_and_explanations_side_by_side(server: Running) -> None:
    pictures = [golden.path.read_bytes() for golden in PACKAGED]

    def ask(number: int) -> requests.Response:
        data = pictures[number % 3] if number % 5 else b"no picture"
        route = "explanations" if number % 2 else "predictions"
        return requests.put(f"{server.url}/{route}/densenet", data=data, timeout=TIMEOUT_S)

    alone = {number: ask(number) for number in range(30)}
    with ThreadPoolExecutor(8) as pool:
        for number, answer in enumerate(pool.map(ask, range(30))):
            assert answer.status_code == (200 if number % 5 else 400)
            assert answer.json() == alone[number].json()


@pytest.mark.skipif(not DOG.is_file(), reason="the document's picture is neither in ../shared nor fetched by a test")
def test_the_document_does_what_it_says(server: Running, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(DOG, tmp_path / "images" / "dog.jpg")
    document = (ROOT / "docs" / "explanations.md").read_text(encoding="utf-8")
    commands = [step for block in re.findall(r"```console\n(.*?)```", document, re.DOTALL) for step in steps(block)]
    assert len(commands) == 3
    shell = {"port": str(server.port), "view": str(tmp_path), "store": str(server.model_store), "cache": str(tmp_path)}
    for step in commands:
        check(step, shell)
    assert (tmp_path / "looked.png").read_bytes().startswith(b"\x89PNG")


def test_an_explanation_costs_less_than_three_predictions(server: Running) -> None:
    def seconds(url: str, **headers: str) -> float:
        start = time.perf_counter()
        assert requests.put(url, data=PICTURE, headers=headers, timeout=TIMEOUT_S).status_code == 200
        return time.perf_counter() - start

    explanations = f"{server.url}/explanations/densenet"
    for _ in range(4):  # the first of each worker reads the last layer's weights
        seconds(explanations)
    times = [  # in turns, so that whatever else the machine does slows all of them
        (seconds(server.predictions), seconds(explanations), seconds(explanations, Accept="image/png"))
        for _ in range(PAIRS)
    ]
    prediction, as_json, as_png = (statistics.median(column) for column in zip(*times))
    print(
        f"\nprediction {1e3 * prediction:.1f} ms, explanation {1e3 * as_json:.1f} ms ({as_json / prediction:.2f} ×), "
        f"as PNG {1e3 * as_png:.1f} ms ({as_png / prediction:.2f} ×)"
    )
    assert as_json < MOST * prediction
    assert as_png < MOST * prediction
