"""The handler as a worker runs it, without a server: TorchServe's own context, loader, codec and metrics."""

from __future__ import annotations

import gc
import inspect
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ts.model_loader import TsModelLoader
from ts.torch_handler.image_classifier import ImageClassifier

import handler.densenet_handler as module
from handler import network
from handler.body import HOW_TO_SEND
from handler.card import CardError
from handler.densenet_handler import WARM_UP_RUNS, DenseNetHandler
from handler.runtimes import torch_runtime
from scripts.lib.archive import archive_inputs
from scripts.lib.model_folder import ModelFolder
from tests.support.pictures.made import ACCEPTED, Broken, base64_of, bomb, broken, jpeg, samples
from tests.support.servers.worker import (
    LABELS,
    LIMITS,
    Request,
    config_of,
    serve,
    start,
    tiny_card,
    tiny_state,
    torchserve_metrics,
    write_tiny_model,
)
from tests.support.servers.worker_protocol import Answer, Sent, predict

CSP = "Content-Security-Policy"
EMPTY = f"received an empty picture (0 bytes); {ACCEPTED}"


def send(picture: bytes, **headers: str) -> Request:
    """``curl -T`` with a picture."""
    return Request({"body": bytearray(picture)}, headers)


def send_json(body: Any, **headers: str) -> Request:
    """A JSON body, as TorchServe's codec hands it over: parsed."""
    return Request({"body": body}, {"content-type": "application/json", **headers})


def assert_error(answer: Answer, status: int, error_type: str, message: str) -> None:
    """The answer is TorchServe's error form with exactly this content."""
    assert answer.content_type == "application/json"
    assert answer.status == status
    assert answer.json == {"code": status, "type": error_type, "message": message}


def assert_same(answer: Any, alone: Any) -> None:
    """Two predictions agree; a batch may differ from a single picture in the last bits."""
    assert set(answer) == set(alone)
    assert (answer["label"], answer["index"]) == (alone["label"], alone["index"])
    assert answer["probability"] == pytest.approx(alone["probability"], abs=1e-4)


# --- answers --------------------------------------------------------------------------------------


def test_picture_is_answered_with_its_best_label(tiny_handler: DenseNetHandler) -> None:
    (answer,) = serve(tiny_handler, [send(jpeg())])
    assert (answer.status, answer.phrase, answer.content_type) == (200, "OK", "application/json")
    assert set(answer.json) == {"label", "index", "probability"}
    assert answer.json["label"] == LABELS[answer.json["index"]]
    assert 1 / len(LABELS) <= answer.json["probability"] <= 1
    assert str(answer.body).endswith("}\n")


def test_answer_is_the_networks(tiny_handler: DenseNetHandler, tiny_model: ModelFolder) -> None:
    """The long way round: torchvision's preprocessing, the network and softmax, without the handler's modules."""
    from PIL import Image
    from torchvision import transforms

    card = tiny_model.card
    prepare = transforms.Compose(
        [
            transforms.Resize(card.resize),
            transforms.CenterCrop(card.crop),
            transforms.ToTensor(),
            transforms.Normalize(card.mean, card.std),
        ]
    )
    exact = network.load_network(card, tiny_model.weights, torch.device("cpu"))
    with torch.inference_mode():
        logits = exact(prepare(Image.open(io.BytesIO(jpeg(3)))).unsqueeze(0))
    probability, index = logits.softmax(1)[0].max(0)
    (answer,) = serve(tiny_handler, [send(jpeg(3))])
    assert answer.json["index"] == int(index)
    assert answer.json["probability"] == pytest.approx(float(probability), abs=0.02)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Request({"file": bytearray(jpeg())}, {"file": {"content-type": "image/jpeg"}}), id="multipart"),
        pytest.param(Request({"data": jpeg()}, {}), id="multipart-data"),
        pytest.param(send_json({"data": base64_of(jpeg())}), id="base64"),
        pytest.param(Request({"body": base64_of(jpeg())}, {"content-type": "text/plain"}), id="base64-as-text"),
        pytest.param(Request({"body": jpeg(), "model_name": b"densenet"}, {}), id="invocations"),
    ],
)
def test_every_form_gets_the_same_answer(tiny_handler: DenseNetHandler, request_: Request) -> None:
    assert serve(tiny_handler, [request_]) == serve(tiny_handler, [send(jpeg())])


def test_every_sample_is_answered(tiny_handler: DenseNetHandler) -> None:
    answers = serve(tiny_handler, [send(sample.data) for sample in samples()])
    assert {sample.name: answer.status for sample, answer in zip(samples(), answers) if answer.status != 200} == {}


def test_text_is_the_label_and_a_newline(tiny_handler: DenseNetHandler) -> None:
    plain, with_top, default = serve(
        tiny_handler,
        [
            send(jpeg(), Accept="text/plain"),
            Request({"file": jpeg(), "topk": "7"}, {"ACCEPT": "text/plain"}),
            send(jpeg()),
        ],
    )
    assert plain.content_type == with_top.content_type == "text/plain; charset=utf-8"
    assert plain.body == default.json["label"] + "\n"
    assert sorted(with_top.body.splitlines()) == sorted(LABELS)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_lists_the_best(tiny_handler: DenseNetHandler, k: int) -> None:
    alone, answer = serve(tiny_handler, [send(jpeg()), Request({"body": jpeg(), "topk": str(k)}, {})])
    top = answer.json["top"]
    assert len(top) == k
    assert len({entry["index"] for entry in top}) == k
    assert [entry["probability"] for entry in top] == sorted((e["probability"] for e in top), reverse=True)
    assert {key: answer.json[key] for key in ("label", "index", "probability")} == top[0]
    assert_same(top[0], alone.json)


def test_topk_of_one_request_is_not_the_others(tiny_handler: DenseNetHandler) -> None:
    answers = serve(tiny_handler, [Request({"body": jpeg(), "topk": "3"}, {}), send(jpeg()), send(jpeg())])
    assert [len(answer.json.get("top", [])) for answer in answers] == [3, 0, 0]


def test_instances_are_answered_in_order(tiny_handler: DenseNetHandler) -> None:
    seeds = [4, 2, 3, 1]
    alone = [serve(tiny_handler, [send(jpeg(seed))])[0].json for seed in seeds]
    (answer,) = serve(tiny_handler, [send_json({"instances": [{"b64": base64_of(jpeg(seed))} for seed in seeds]})])
    assert list(answer.json) == ["predictions"]
    assert len(answer.json["predictions"]) == 4
    for prediction, expected in zip(answer.json["predictions"], alone):
        assert_same(prediction, expected)


def test_temperature_of_the_card_is_applied(tmp_path: Path) -> None:
    hot = write_tiny_model(tmp_path, tiny_card(temperature=1000.0))
    (answer,) = serve(start(hot.path, config_of(hot)), [send(jpeg())])
    assert answer.json["probability"] == pytest.approx(1 / len(LABELS), abs=0.01)


# --- isolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, 7])
def test_one_bad_in_a_batch_harms_nobody_else(tiny_handler: DenseNetHandler, position: int) -> None:
    requests = [send(jpeg(seed)) for seed in range(8)]
    alone = [serve(tiny_handler, [request])[0].json for request in requests]
    assert len({answer["probability"] for answer in alone}) == 8  # the order can be told
    requests[position] = send(jpeg(position)[:-600])
    answers = serve(tiny_handler, requests)
    assert [answer.status for answer in answers] == [400 if i == position else 200 for i in range(8)]
    assert answers[position].phrase == "Bad Request"
    assert answers[position].json["type"] == "InvalidImage"
    assert re.match("received a JPEG picture of 96 × 64 px that is broken", answers[position].json["message"])
    for index in set(range(8)) - {position}:
        assert_same(answers[index].json, alone[index])


def test_batch_of_nothing_but_broken_pictures(tiny_handler: DenseNetHandler) -> None:
    for answer in serve(tiny_handler, [send(b"")] * 8):
        assert_error(answer, 400, "InvalidImage", EMPTY)
    assert serve(tiny_handler, [send(jpeg())])[0].status == 200


def test_each_error_of_a_batch_is_its_own(tiny_handler: DenseNetHandler) -> None:
    picture = base64_of(jpeg())
    requests = [
        send(b""),
        Request({}, {}),
        Request({"file": jpeg(), "data": jpeg()}, {}),
        Request({"file": jpeg(), "topk": "8"}, {}),
        Request({"file": jpeg(), "topk": "2"}, {"explain": "True"}),
        send_json({"instances": [{"data": picture}] * 5}),
        send(bomb(1001)),
        send(jpeg(), Accept="text/plain"),
        send_json({"instances": [{"data": picture}] * 2}),
    ]
    answers = serve(tiny_handler, requests)
    assert_error(answers[0], 400, "InvalidImage", EMPTY)
    assert_error(answers[1], 400, "InvalidRequest", f"received no picture; {HOW_TO_SEND}")
    assert_error(
        answers[2], 400, "InvalidRequest", f"received more than one picture (fields data, file); {HOW_TO_SEND}"
    )
    assert_error(
        answers[3],
        400,
        "InvalidParameter",
        "received topk='8'; accepted are whole numbers from 1 to 7, the number of classes",
    )
    assert_error(
        answers[4],
        400,
        "InvalidRequest",
        "received the unknown field 'topk'; accepted are file, data, body (one of them), method, target, "
        f"and instances; {HOW_TO_SEND}",
    )
    assert_error(
        answers[5],
        413,
        "TooManyInstances",
        "received 5 instances; accepted are at most 4 in one request; send several requests",
    )
    assert_error(
        answers[6],
        413,
        "ImageTooLarge",
        "received a PNG picture of 1001 × 1001 px = 1,002,001 pixels; accepted are at most 1,000,000 pixels",
    )
    assert [answer.status for answer in answers[7:]] == [200, 200]
    assert answers[7].content_type == "text/plain; charset=utf-8"
    assert [p["label"] + "\n" for p in answers[8].json["predictions"]] == [answers[7].body] * 2


@pytest.mark.parametrize("case", broken(), ids=lambda c: c.name)
def test_what_is_no_picture_is_the_clients_error(tiny_handler: DenseNetHandler, case: Broken) -> None:
    bad, good = serve(tiny_handler, [send(case.data), send(jpeg())])
    assert (bad.status, bad.json["code"], bad.json["type"]) == (case.status, case.status, case.type)
    assert re.search(case.message, bad.json["message"])
    assert good.status == 200


def test_one_bad_instance_is_named_and_harms_only_its_request(tiny_handler: DenseNetHandler) -> None:
    bad = send_json({"instances": [{"data": base64_of(jpeg())}, {"data": ""}, {"data": base64_of(jpeg())}]})
    before, answer, after = serve(tiny_handler, [send(jpeg(1)), bad, send(jpeg(2))])
    assert_error(answer, 400, "InvalidImage", f"instance 1: {EMPTY}")
    assert_same(before.json, serve(tiny_handler, [send(jpeg(1))])[0].json)
    assert_same(after.json, serve(tiny_handler, [send(jpeg(2))])[0].json)


def test_too_large_an_instance_keeps_its_status(tiny_handler: DenseNetHandler) -> None:
    (answer,) = serve(tiny_handler, [send_json({"instances": [{"data": base64_of(bomb(1001))}]})])
    assert (answer.status, answer.phrase) == (413, "Payload Too Large")
    assert answer.json["message"].startswith("instance 0: received a PNG picture of 1001 × 1001 px")


def test_errors_are_json_even_for_clients_that_prefer_text(tiny_handler: DenseNetHandler) -> None:
    (answer,) = serve(tiny_handler, [send(b"", Accept="text/plain")])
    assert_error(answer, 400, "InvalidImage", EMPTY)


def test_fault_of_the_server_is_not_blamed_on_the_client(
    tiny_handler: DenseNetHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug\n\ud800")

    # of a batch of three the second one's: as it is read, and as its answer is made
    requests = [send_json({"inputs": []}), send(jpeg(1)), send_json({"inputs": []})]
    for name in ("parse", "prediction_response"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            before, answer, after = serve(tiny_handler, requests)
        assert answer.phrase == "Internal Server Error"
        message = "the server failed with this request; its log says why"
        assert_error(answer, 500, "InternalServerException", message)
        assert before == after == serve(tiny_handler, requests)[0]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(r"a request failed: ZeroDivisionError('a bug\n\ud800')")
        assert f'File "{module.__file__}"' in line and len(line) < 5000


def test_fault_with_a_tensor_has_what_grpc_reads(
    tiny_handler: DenseNetHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe's frontend reads these keys of every answer; without one its thread, and the worker, would end."""

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    for name in ("parse_infer", "infer_response"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64_of(jpeg())]}
            (answer,) = serve(tiny_handler, [send_json({"id": "7", "inputs": [tensor]})])
        assert (answer.status, answer.json["id"], answer.json["type"]) == (500, "7", "InternalServerException")
        assert {"model_name", "model_version", "outputs"} <= set(answer.json)


def test_nothing_of_a_batch_is_left_for_the_next(tiny_handler: DenseNetHandler) -> None:
    first = serve(tiny_handler, [send(jpeg(1)), send(b"")])
    serve(tiny_handler, [send(b""), send_json({"instances": []}), send(jpeg(2))])
    assert serve(tiny_handler, [send(jpeg(1)), send(b"")]) == first


# --- card, start ----------------------------------------------------------------------------------


def test_describe_answers_with_the_card(tiny_handler: DenseNetHandler, tiny_model: ModelFolder) -> None:
    (answer,) = serve(tiny_handler, [Request({"body": b""}, {"describe": "True"})])
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json == tiny_model.card.to_dict()
    assert tiny_handler.describe_handle() == tiny_model.card.to_dict()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_describe_in_a_batch_harms_nobody_else(tiny_handler: DenseNetHandler, position: int) -> None:
    requests = [send(jpeg(1)), send(jpeg(2))]
    alone = [serve(tiny_handler, [request])[0] for request in requests]
    requests.insert(position, Request({}, {"describe": "True"}))
    answers = serve(tiny_handler, requests)
    assert answers.pop(position).json["name"] == "densenet-tiny"
    for answer, expected in zip(answers, alone):
        assert_same(answer.json, expected.json)


def test_handler_is_torchserves_image_classifier_and_ready(tiny_handler: DenseNetHandler) -> None:
    assert isinstance(tiny_handler, ImageClassifier)
    assert tiny_handler.initialized
    assert tiny_handler.device == torch.device("cpu")
    assert tiny_handler.labels == LABELS
    assert tiny_handler.mapping == {str(i): label for i, label in enumerate(LABELS)}
    assert tiny_handler.max_pixels == LIMITS["max_image_pixels"]
    assert tiny_handler.max_instances == LIMITS["max_instances"]


def test_threads_are_the_cards(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    model = write_tiny_model(tmp_path, tiny_card(threads_per_worker=2))
    try:
        start(model.path, config_of(model))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_network_is_warm_before_the_first_request(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    load: Callable[..., Any] = network.load_network

    def counted(*args: Any) -> Any:
        loaded = load(*args)
        loaded.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
        return loaded

    monkeypatch.setattr(torch_runtime, "load_network", counted)
    ready = start(tiny_model.path, config_of(tiny_model))
    assert shapes == [(1, 3, 64, 64)] * WARM_UP_RUNS
    serve(ready, [send(jpeg()), send(b""), send(jpeg())])
    assert shapes[WARM_UP_RUNS:] == [(2, 3, 64, 64)]  # one run for the good ones
    serve(ready, [send(b"")])
    assert len(shapes) == WARM_UP_RUNS + 1  # and none for none


def test_gpu_of_the_worker_is_left_alone_without_cuda(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start(tiny_model.path, config_of(tiny_model), gpu=0).device == torch.device("cpu")


@pytest.mark.parametrize("config", [None, {}, {"limits": LIMITS}])
def test_archive_without_a_card_does_not_start(tiny_model: ModelFolder, config: Any) -> None:
    message = "model-config.yaml has no section 'handler:', the model card; build the archive anew"
    with pytest.raises(CardError, match=f"^{re.escape(message)}$"):
        start(tiny_model.path, config)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (None, "limits must hold max_image_pixels, a positive number, is None"),
        ({}, "limits must hold max_image_pixels, a positive number, is None"),
        ({"max_image_pixels": 10}, "limits must hold max_instances, a positive number, is None"),
        ({"max_image_pixels": "many"}, "limits must hold max_image_pixels, a positive number, is 'many'"),
        ({"max_image_pixels": True}, "limits must hold max_image_pixels, a positive number, is True"),
        ({**LIMITS, "max_instances": 0}, "limits must hold max_instances, a positive number, is 0"),
    ],
)
def test_archive_without_limits_does_not_start(tiny_model: ModelFolder, limits: Any, message: str) -> None:
    with pytest.raises(CardError, match=f"^model-config.yaml: {re.escape(message)}$"):
        start(tiny_model.path, {**config_of(tiny_model), "limits": limits})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"classes": 7}, "the model card has the unknown key 'classes'", id="unknown-key"),
        pytest.param({"crop": 16}, "the model card is wrong: crop must be 32 to 2048 px, is 16", id="out-of-range"),
        pytest.param(
            {"num_classes": 8}, "the labels don't fit the card: 7 labels for 8 classes, missing 7;", id="more-classes"
        ),
        pytest.param(
            {"architecture": {"name": "x", "growth_rate": 8, "block_config": [2, 3], "num_init_features": 16}},
            r"the weights in weights.safetensors don't fit the architecture: 10 tensors are missing \(first features\.",
            id="deeper",
        ),
        pytest.param(
            {"weights_sha256": "ab" * 32},
            r"weights.safetensors isn't the file that the card describes: SHA-256 [0-9a-f]{12}…, the card says abab",
            id="other-weights",
        ),
    ],
)
def test_card_of_another_model_does_not_start(tiny_model: ModelFolder, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=f"^{message}"):
        start(tiny_model.path, config_of(tiny_model, **changes))


def test_labels_of_another_model_do_not_start(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    (model.path / "index_to_name.json").write_text('{"0": "cat", "1": "dog"}', encoding="utf-8")
    with pytest.raises(
        CardError, match=r"^the labels don't fit the card: 2 labels for 7 classes, missing 2, 3, 4, 5, 6;"
    ):
        start(model.path, config_of(model))


def test_weights_with_undefined_numbers_do_not_start(tmp_path: Path) -> None:
    state = tiny_state()
    state["classifier.bias"][2] = torch.nan
    model = write_tiny_model(tmp_path, state=state)
    message = "the weights in weights.safetensors hold infinite or undefined numbers (first in classifier.bias)"
    with pytest.raises(CardError, match=f"^{re.escape(message)}$"):
        start(model.path, config_of(model))


def test_weights_that_overflow_do_not_start(tmp_path: Path) -> None:
    state = tiny_state()
    state["features.norm0.bias"].fill_(1e30)
    state["classifier.weight"].fill_(1e30)
    model = write_tiny_model(tmp_path, state=state)
    message = "the network answers a blank picture with infinite or undefined logits; retrain it"
    with pytest.raises(CardError, match=f"^{re.escape(message)}$"):
        start(model.path, config_of(model))


# --- through TorchServe's worker code -------------------------------------------------------------


@pytest.fixture
def worker(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """TorchServe's service with the model, loaded from the files of an archive and from nothing else of ours."""
    for name, content in archive_inputs(tiny_model, tiny_model.card, {}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    model = {
        "serializedFile": "weights.safetensors",
        "modelVersion": "1.0",
        "handler": "densenet_handler.py",
        "configFile": "model-config.yaml",
    }
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}), encoding="utf-8")
    ours = {name: m for name, m in sys.modules.items() if name == "handler" or name.startswith("handler.")}
    for name in ours:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    try:
        service = TsModelLoader().load(
            "densenet", str(tmp_path), "densenet_handler.py", None, 8, None, True, metrics_cache=torchserve_metrics()
        )
        service.set_cl_socket(None)
        yield service
    finally:
        for name in list(sys.modules):
            if name in ("handler", "densenet_handler") or name.startswith("handler."):
                del sys.modules[name]
        sys.modules.update(ours)


def test_worker_runs_the_archives_own_code(worker: Any, tmp_path: Path) -> None:
    loaded = worker._entry_point.__self__
    assert type(loaded).__name__ == "DenseNetHandler"
    assert Path(inspect.getfile(type(loaded))) == tmp_path / "densenet_handler.py"
    assert Path(inspect.getfile(type(loaded.card))) == tmp_path / "handler" / "card.py"
    assert loaded.max_pixels == 100_000_000  # as config/model-config.yaml says


def test_worker_answers_a_mixed_batch(worker: Any, tiny_handler: DenseNetHandler) -> None:
    picture, text = jpeg(5), base64_of(jpeg(5))
    multipart = [("content-type", "multipart/form-data; boundary=x"), ("content-length", str(len(picture) + 300))]
    code, answers = predict(
        worker,
        [
            Sent([("body", "image/jpeg", picture)], [("Accept", "*/*")]),
            Sent([("body", "", picture)], [("Accept", "text/plain")]),
            Sent([("file", "image/jpeg", picture), ("topk", "text/plain", b"2")], multipart),
            Sent([("body", "application/json", json.dumps({"data": text, "topk": 2}).encode())]),
            Sent([("body", "application/json", json.dumps({"instances": [{"b64": text}] * 2}).encode())]),
            Sent([("body", "application/json", b'{"data": ')], [("Content-Type", "application/json")]),
            Sent([("body", "image/jpeg", picture[:-500])]),
            Sent([("body", "", b"")], [("describe", "True")]),
            Sent([("body", "", b"")], [("Accept", "text/html")]),
            Sent([("body", "", picture)], [("explain", "True")]),
            Sent([("body", "", picture)], [("explain", "True"), ("Accept", "image/png")]),
            Sent([("body", "", picture[:-500])], [("explain", "True")]),
        ],
    )
    assert code == 200
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 200, 400, 400, 200, 200, 200, 200, 400]
    assert [answer.phrase for answer in answers[4:7]] == ["OK", "Bad Request", "Bad Request"]
    (expected,) = serve(tiny_handler, [send(picture)])
    assert_same(answers[0].json, expected.json)
    assert answers[1].body == expected.json["label"] + "\n"
    assert answers[1].content_type == "text/plain; charset=utf-8"
    assert len(answers[2].json["top"]) == len(answers[3].json["top"]) == 2
    assert_same(answers[2].json["top"][0], expected.json)
    assert_same(answers[4].json["predictions"][1], expected.json)
    reason = "Expecting value: line 1 column 10 (char 9)"
    assert_error(
        answers[5], 400, "InvalidRequest", f"received a JSON body that can't be parsed ({reason}); {HOW_TO_SEND}"
    )
    assert answers[6].json["type"] == "InvalidImage"
    assert answers[7].json == tiny_handler.card.to_dict()
    assert answers[8].content_type == "text/html; charset=utf-8"
    assert answers[8].body.startswith("<!doctype html>") and "default-src 'none'" in answers[8].headers[CSP]
    assert {key: answers[9].json[key] for key in expected.json} == answers[0].json
    assert (answers[10].content_type, answers[10].body[:4]) == ("image/png", b"\x89PNG")
    assert_error(answers[11], 400, "InvalidImage", answers[6].json["message"])


def test_worker_sends_labels_that_are_no_ascii_whole(worker: Any) -> None:
    body = json.dumps({"data": base64_of(jpeg()), "topk": len(LABELS)}).encode()
    _, (answer,) = predict(worker, [Sent([("body", "application/json", body)])])
    assert "Bächli" in {entry["label"] for entry in answer.json["top"]}


def test_fault_of_the_server_is_answered_with_503_by_torchserve(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(worker._entry_point.__self__, "inference", fail)
    code, answers = predict(worker, [Sent([("body", "image/jpeg", jpeg())])] * 2)
    assert code == 503
    assert [answer.status for answer in answers] == [503, 503]


def test_a_worker_with_threads_decodes_a_batch_with_them(
    tiny_handler: DenseNetHandler, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [send(jpeg(1)), send(b"no picture"), send(jpeg(2)), send(b""), send(jpeg(3))]
    wanted = [(answer.status, answer.body) for answer in serve(tiny_handler, requests)]
    before = torch.get_num_threads()
    try:
        threaded = start(tiny_model.path, config_of(tiny_model, threads_per_worker=3))
    finally:
        torch.set_num_threads(before)
    names: set[str] = set()
    read = threaded.reader.read

    def named(*arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return read(*arguments)

    monkeypatch.setattr(threaded.reader, "read", named)
    assert [(answer.status, answer.body) for answer in serve(threaded, requests)] == wanted
    assert names and all(name.startswith("ThreadPoolExecutor") for name in names)


@pytest.mark.slow
def test_the_settings_may_ask_for_torch_compile(tiny_model: ModelFolder) -> None:
    config = config_of(tiny_model) | {"pt2": {"compile": {"backend": "eager"}}}
    compiled = start(tiny_model.path, config)
    assert isinstance(compiled.runtime, torch_runtime.TorchRuntime)
    assert isinstance(compiled.runtime.network, torch._dynamo.eval_frame.OptimizedModule)
    (answer,) = serve(compiled, [send(jpeg())])
    assert answer.status == 200


@pytest.mark.parametrize(
    "body", [bytes(100_000), jpeg()[:-500], bomb(1001), b'{"a"'], ids=["zeros", "cut-off", "large", "json"]
)
def test_a_refused_picture_is_forgotten_at_once(tiny_handler: DenseNetHandler, body: bytes) -> None:
    """An error that is kept keeps its traceback, that the frames, and they the body: until the collector runs."""
    serve(tiny_handler, [send(body), send(jpeg())])
    gc.collect()
    gc.disable()
    try:
        serve(tiny_handler, [send(body)])
        serve(tiny_handler, [send(jpeg())])
        assert gc.collect() == 0
    finally:
        gc.enable()
