"""Explanations: right by captum and by the definition, in every form, and sensible on real pictures."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import nn

from handler import memory
from handler.card import ModelCard
from handler.densenet_handler import DenseNetHandler
from handler.errors import ServerBusy
from handler.explanation import BRIGHTEST, OVERLAY_SCALE, Explainer, Explanation, enlarged
from handler.gradients import STEPS, Gradients, integrated_gradients
from handler.images import decode_reduced, open_picture
from handler.network import load_network
from handler.payload import METHODS, ExplanationOptions
from handler.preprocessing import Preprocessing, View
from handler.runtimes import load_runtime
from handler.topk import Prediction
from scripts.lib.conversion import loaded
from scripts.lib.model_folder import ModelFolder, read_model_folder
from scripts.lib.paths import BUNDLED, ROOT
from scripts.lib.precision import Wanted, settle
from tests.support.pictures.golden import CHELSEA, PACKAGED
from tests.support.pictures.made import base64_of, halves, jpeg, oriented, save
from tests.support.servers.worker import LABELS, LIMITS, Request, config_of, serve, start
from tests.support.servers.worker_protocol import Answer

CPU = torch.device("cpu")
MAX_PIXELS = 10**8
SAMOYEDS = sorted((ROOT.parent / "shared" / "data" / "oxford-pets" / "samoyed").glob("*.jpg"))[:80]
EXPLAIN = {"explain": "True"}


def read(card: ModelCard, data: bytes) -> View:
    """A picture as a worker reads it for an explanation."""
    return Preprocessing.of(card).view(open_picture(data, MAX_PIXELS), MAX_PIXELS, OVERLAY_SCALE * card.crop)


def explained(explainer: Explainer, view: View, method: str = METHODS[0], target: int | None = None) -> Explanation:
    """An explanation that isn't put off."""
    explanation = explainer.explain(view, ExplanationOptions(method, target))
    assert isinstance(explanation, Explanation)
    return explanation


def torch_explainer(model: ModelFolder) -> Explainer:
    """With the network in PyTorch, float32."""
    runtime = load_runtime(model.card, model.path, model.weights, CPU)
    return Explainer(model.card, model.labels, runtime, model.weights, CPU)


@pytest.fixture(scope="module")
def bundled() -> ModelFolder:
    """The bundled model."""
    return read_model_folder(BUNDLED)


@pytest.fixture(scope="module")
def served(bundled: ModelFolder) -> Iterator[Explainer]:
    """The bundled model as it is served on this machine."""
    card, files = settle(bundled, Wanted())
    with loaded(bundled, card, files) as runtime:
        yield Explainer(card, bundled.labels, runtime, bundled.weights, CPU)


def explain(handler: DenseNetHandler, *rows: dict[str, Any], accept: str = "") -> list[Answer]:
    """A batch of requests for explanations."""
    return serve(handler, [Request(row, {**EXPLAIN, "accept": accept}) for row in rows])


# --- right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [p.path for p in PACKAGED], ids=lambda p: p.stem)
@pytest.mark.parametrize("target", [None, 0, 36])
def test_grad_cam_is_captums(bundled: ModelFolder, picture: Path, target: int | None) -> None:
    explainer = torch_explainer(bundled)
    view = read(bundled.card, picture.read_bytes())
    explanation = explained(explainer, view, target=target)
    trained = load_network(bundled.card, bundled.weights, CPU)
    # torchvision's forward calls ReLU and mean as functions, of which captum can't take hold
    network = nn.Sequential(
        trained.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), trained.get_submodule("classifier")
    )
    images = Preprocessing.of(bundled.card).to_tensor(view.array[None]).requires_grad_()
    wanted = LayerGradCam(network, network[1]).attribute(
        images, target=explanation.prediction.index, relu_attributions=True
    )
    wanted = wanted[0, 0].detach().numpy()
    assert wanted.max() > 0 or target is not None, "something speaks for the best class"
    assert explanation.heat.shape == wanted.shape == (5, 5)
    assert explanation.heat == pytest.approx(wanted / (wanted.max() or 1), abs=1e-4)
    assert target in (None, explanation.prediction.index)


def test_integrated_gradients_are_the_definitions(tiny_model: ModelFolder) -> None:
    explainer = torch_explainer(tiny_model)
    view = read(tiny_model.card, jpeg(3))
    found = explained(explainer, view, "integrated-gradients", 2)
    network = load_network(tiny_model.card, tiny_model.weights, CPU)
    images = Preprocessing.of(tiny_model.card).to_tensor(view.array[None])
    places, weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros_like(images)
    for place, weight in zip((places + 1) / 2, weights / 2):
        point = (images * float(place)).requires_grad_()
        network(point)[0, 2].backward()
        assert point.grad is not None
        total += float(weight) * point.grad
    attributions = images * total
    with torch.inference_mode():
        whole = float(network(images)[0, 2] - network(torch.zeros_like(images))[0, 2])
    assert float(attributions.sum()) == pytest.approx(whole, rel=0.1), "they add up to what the picture changes"
    wanted = attributions[0].sum(0).clamp(min=0).numpy()
    wanted = np.minimum(wanted / np.percentile(wanted, BRIGHTEST), 1)
    assert found.heat.shape == (64, 64)
    assert found.heat == pytest.approx(wanted, abs=1e-3)


def test_the_runtime_that_serves_gives_the_map_of_pytorch(bundled: ModelFolder, served: Explainer) -> None:
    exact = torch_explainer(bundled)
    for golden in PACKAGED:
        view = read(exact._card, golden.path.read_bytes())
        found, wanted = (explained(e, view) for e in (served, exact))
        assert found.prediction.index == wanted.prediction.index
        assert np.abs(found.heat - wanted.heat).max() < 0.1  # bfloat16 where the processor has it


@pytest.mark.parametrize("method", METHODS)
def test_the_heat_is_between_0_and_1(tiny_model: ModelFolder, method: str) -> None:
    explainer = torch_explainer(tiny_model)
    for golden in PACKAGED:
        heat = explained(explainer, read(tiny_model.card, golden.path.read_bytes()), method).heat
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        assert heat.max() == 1


def test_where_nothing_speaks_for_a_class_all_is_0(tiny_model: ModelFolder) -> None:
    explainer, view = torch_explainer(tiny_model), read(tiny_model.card, jpeg())
    explainer._class_weights[4] = 0
    assert not explained(explainer, view, target=4).heat.any()
    explainer._network.get_parameter("classifier.weight")[4] = 0
    preprocessing = Preprocessing.of(tiny_model.card)
    assert not integrated_gradients(explainer._network, preprocessing, view.array, 4, CPU).any()


def test_one_explanation_by_integrated_gradients_at_a_time(tiny_model: ModelFolder) -> None:
    """The lock is free as soon as the process has ended, however it did."""
    view, deadline = read(tiny_model.card, jpeg()), time.monotonic() + 60

    def task() -> Gradients:
        return Gradients(tiny_model.card, tiny_model.weights, view, 0, deadline)

    first = task()
    first.start()
    with pytest.raises(
        ServerBusy, match=r"^the server computes one explanation .*, and one, or a large picture, is under way; try"
    ):
        task().start()
    assert first._process is not None
    os.kill(first._process.pid, signal.SIGKILL)
    assert first.wait(60)
    with pytest.raises(
        ServerBusy, match=r"ended with -9 \(-9: the memory ran out\); try again later, or ask for grad-cam"
    ):
        first.result()
    second = task()
    second.start()
    assert second.wait(60)
    assert second.result()["heat"].shape == (64, 64)


def test_without_memory_integrated_gradients_are_put_off(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**8)
    view = read(tiny_model.card, jpeg())
    with pytest.raises(ServerBusy, match=r"take up to \d+ MB of memory, which aren't free now; try again later"):
        Gradients(tiny_model.card, tiny_model.weights, view, 0, 0).start()


def test_integrated_gradients_can_be_switched_off(tiny_model: ModelFolder) -> None:
    handler = start(tiny_model.path, {**config_of(tiny_model), "limits": {**LIMITS, "integrated_gradients": False}})
    off, on = explain(handler, {"body": jpeg(), "method": bytearray(b"integrated-gradients")}, {"body": jpeg()})
    assert (off.status, off.json["type"], on.status) == (400, "InvalidParameter", 200)
    assert off.json["message"] == "received method='integrated-gradients', which is off at this server; send grad-cam"


# --- sensible ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(len(SAMOYEDS) < 50, reason="needs the Samoyeds of ../shared")
def test_what_is_hottest_matters_most(bundled: ModelFolder, served: Explainer) -> None:
    """Covering the hottest fifth lowers the probability more than covering a random fifth of the same kind."""
    card = bundled.card
    cover = np.array([round(255 * mean) for mean in card.mean], dtype=np.uint8)
    samoyed = bundled.labels.index("Samoyed")
    rng = np.random.default_rng(0)

    def covered(array: np.ndarray, heat: np.ndarray) -> np.ndarray:
        # where cells are equally hot (0), chance decides between them
        large = enlarged(heat, card.crop) + rng.random((card.crop, card.crop)) * 1e-6
        result = array.copy()
        result[large >= np.quantile(large, 0.8)] = cover
        return result

    def probability(array: np.ndarray) -> float:
        return explained(served, View(array, array, (1, 1)), target=samoyed).prediction.probability

    hottest, random = [], []
    for path in SAMOYEDS:
        array = read(card, path.read_bytes()).array
        explanation = explained(served, View(array, array, (1, 1)), target=samoyed)
        before, shape = explanation.prediction.probability, explanation.heat.shape
        hottest.append(before - probability(covered(array, explanation.heat)))
        draws = [covered(array, rng.random(shape, dtype=np.float32)) for _ in range(5)]
        random.append(before - float(np.mean([probability(draw) for draw in draws])))
    share = float(np.mean(np.array(hottest) > np.array(random)))
    print(
        f"\n{len(SAMOYEDS)} Samoyeds: covering the hottest fifth lowers the probability by {np.mean(hottest):.3f}, "
        f"a random fifth by {np.mean(random):.3f}; more in {share:.0%} of the pictures"
    )
    assert np.mean(hottest) > 3 * np.mean(random)
    assert share > 0.8


# --- answers ----------------------------------------------------------------------------------------


def test_an_explanation_as_json(tiny_handler: DenseNetHandler) -> None:
    (prediction,) = serve(tiny_handler, [Request({"body": jpeg()}, {})])
    (answer,) = explain(tiny_handler, {"body": jpeg()})
    assert (answer.status, answer.content_type) == (200, "application/json")
    heat = answer.json.pop("heat_map")
    assert answer.json.pop("heat_map") == heat
    rest = {k: v for k, v in answer.json.items() if k != "heat_map"}
    # 96 × 64 px: the shorter side becomes 72 px, of which the middle 64 are seen
    edges = [pytest.approx(edge, abs=0.01) for edge in (19.56, 3.56, 76.44, 60.44)]
    assert rest == {
        **prediction.json,
        "method": "grad-cam",
        "width": 8,
        "height": 8,
        "region": edges,
        "picture": [96, 64],
    }
    assert [len(row) for row in heat] == [8] * 8
    assert max(max(row) for row in heat) == 1


@pytest.mark.parametrize("target", range(len(LABELS)))
def test_the_target_chooses_the_class(tiny_handler: DenseNetHandler, target: int) -> None:
    (top,) = serve(tiny_handler, [Request({"body": jpeg(), "topk": "7"}, {})])
    (answer,) = explain(tiny_handler, {"file": jpeg(), "target": str(target).encode()})
    expected = next(entry for entry in top.json["top"] if entry["index"] == target)
    assert {key: answer.json[key] for key in expected} == expected


def test_maps_of_two_classes_differ(tiny_handler: DenseNetHandler) -> None:
    first, second = explain(tiny_handler, {"body": jpeg(), "target": "0"}, {"body": jpeg(), "target": "1"})
    assert first.json["heat_map"] != second.json["heat_map"]


@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_as_a_picture(tiny_handler: DenseNetHandler, method: str) -> None:
    rows = [{"file": p, "method": method} for p in (jpeg(), save(Image.new("RGB", (90, 90), "black"), "PNG"))]
    one, other = explain(tiny_handler, *rows, accept="image/png, */*")
    assert (one.status, one.content_type) == (200, "image/png")
    side = OVERLAY_SCALE * 64
    for answer in (one, other):
        with Image.open(io.BytesIO(answer.body)) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (side, side), "RGB")
    assert one.body != other.body


def test_the_picture_shows_the_crop_upright_and_the_heat_where_it_is(tiny_model: ModelFolder) -> None:
    explainer = torch_explainer(tiny_model)
    view = read(tiny_model.card, oriented(6, "PNG"))  # red left, blue right, stored lying
    heat = np.zeros((2, 2), dtype=np.float32)
    heat[0, 1] = 1  # upper right
    picture = explainer.draw(Explanation(Prediction("a", 0, 1), "grad-cam", heat), view)
    drawn = np.asarray(Image.open(io.BytesIO(picture)))
    side = len(drawn)
    left, right = drawn[-side // 8, side // 8], drawn[-side // 8, -side // 8]
    assert left[0] > 150 > left[2] and right[2] > 150 > right[0]
    assert drawn[side // 8, -side // 8, :2].min() > 150, "yellow over blue"


EVERY_FORM: dict[str, dict[str, Any]] = {
    "body": {"body": jpeg()},
    "multipart": {"file": bytearray(jpeg())},
    "multipart-data": {"data": jpeg()},
    "base64": {"body": {"data": base64_of(jpeg())}},
    "base64-as-text": {"body": base64_of(jpeg())},
}


@pytest.mark.parametrize("row", EVERY_FORM.values(), ids=EVERY_FORM.keys())
def test_every_form_of_picture_is_explained(tiny_handler: DenseNetHandler, row: dict[str, Any]) -> None:
    assert explain(tiny_handler, row) == explain(tiny_handler, {"body": jpeg()})


def test_instances_are_explained_in_order_as_json(tiny_handler: DenseNetHandler) -> None:
    alone = [explain(tiny_handler, {"body": jpeg(seed)})[0].json for seed in (1, 2)]
    body = {"instances": [{"b64": base64_of(jpeg(seed))} for seed in (1, 2)]}
    (answer,) = explain(tiny_handler, {"body": body}, accept="image/png")
    assert answer.content_type == "application/json"
    assert answer.json == {"explanations": alone}


def test_a_bad_instance_is_named(tiny_handler: DenseNetHandler) -> None:
    (answer,) = explain(tiny_handler, {"body": {"instances": [{"b64": base64_of(jpeg())}, {"b64": "aGVsbG8="}]}})
    assert (answer.status, answer.json["type"]) == (400, "InvalidImage")
    assert answer.json["message"].startswith("instance 1: received 5 bytes that are no picture")


@pytest.mark.parametrize("first", ["prediction", "explanation"])
def test_predictions_and_explanations_in_one_batch(tiny_handler: DenseNetHandler, first: str) -> None:
    prediction = Request({"body": jpeg(1)}, {})
    explanation = Request({"body": jpeg(2)}, EXPLAIN)
    alone = {id(r): serve(tiny_handler, [r])[0] for r in (prediction, explanation)}
    batch = [prediction, explanation] * 2 if first == "prediction" else [explanation, prediction] * 2
    bad = Request({"body": b"no picture", "target": "99"}, EXPLAIN)
    answers = serve(tiny_handler, [*batch[:1], bad, *batch[1:]])
    refused = answers.pop(1)
    assert (refused.status, refused.json["type"]) == (400, "InvalidParameter")
    for request, answer in zip(batch, answers):
        wanted = alone[id(request)].json
        assert answer.status == 200
        assert answer.json.get("heat_map") == wanted.get("heat_map")
        assert answer.json["probability"] == pytest.approx(wanted["probability"], abs=1e-4)


def test_what_is_wrong_with_a_picture_is_said(tiny_handler: DenseNetHandler) -> None:
    answers = explain(tiny_handler, {"body": b""}, {"body": jpeg()[:-600]}, {"body": jpeg()})
    assert [a.status for a in answers] == [400, 400, 200]
    assert answers[0].json["message"].startswith("received an empty picture (0 bytes)")


def test_the_answer_is_json_that_everybody_reads(served: Explainer) -> None:
    explainer_json = json.dumps(served._to_dict(*_explained(served)), allow_nan=False)
    assert json.loads(explainer_json)["height"] == 5


def _explained(explainer: Explainer) -> tuple[Any, Any]:
    view = read(explainer._card, CHELSEA.read_bytes())
    return explained(explainer, view), view


def test_the_region_of_a_reduced_picture_is_the_whole_ones(tiny_model: ModelFolder) -> None:
    """A JPEG that is decoded at an eighth has the region of the same picture as a PNG."""
    explainer = torch_explainer(tiny_model)
    picture = halves(size=(1601, 1203))
    regions = []
    for picture_format in ("JPEG", "PNG"):
        data = save(picture, picture_format)
        view = read(tiny_model.card, data)
        answer = explainer._to_dict(explained(explainer, view), view)
        regions.append((answer["region"], answer["picture"]))
        decoded, _ = decode_reduced(data, MAX_PIXELS, Preprocessing.of(tiny_model.card).enough)
        assert decoded.width == (1601 if picture_format == "PNG" else 201)
    left, top, right, bottom = Preprocessing.of(tiny_model.card).region((1601, 1203))
    assert regions[1] == ([round(e, 2) for e in (left, top, right, bottom)], [1601, 1203])
    assert regions[0][0] == pytest.approx(regions[1][0], abs=8)
    assert 0 <= top < bottom <= 1203 and right - left == pytest.approx(bottom - top, abs=10)
