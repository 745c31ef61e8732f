"""Every setting is known to who reads it, has a comment, and says what the documents say."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from handler.gradients import SECONDS
from handler.memory import JAVA_SHARE
from handler.responses import prediction_response
from handler.topk import top_predictions
from scripts.lib.archive import GPU_CONFIG, KNOWN_KEYS, check_answers, check_model_config, model_config
from scripts.lib.console import CommandError
from scripts.lib.model_folder import read_model_folder
from scripts.lib.packed import MODEL_CONFIG
from scripts.lib.paths import BUNDLED, CONFIG
from scripts.lib.server import METRICS_CONFIG, read_properties, server_properties
from tests.support.servers.worker import LIMITS

PROPERTIES = CONFIG / "config.properties"


def java_class(name: str) -> bytes:
    """A class of TorchServe's own jar, whose constants hold the keys that it reads."""
    spec = importlib.util.find_spec("ts")
    assert spec is not None and spec.origin is not None
    with zipfile.ZipFile(Path(spec.origin).parent / "frontend" / "model-server.jar") as jar:
        return jar.read(name)


def is_constant(key: str, code: bytes) -> bool:
    """Whether ``key`` is a string constant of a class file: tag 1, two bytes of length, the text."""
    return b"\x01" + len(key).to_bytes(2, "big") + key.encode() in code


def test_torchserve_reads_every_key_of_config_properties() -> None:
    code = java_class("org/pytorch/serve/util/ConfigManager.class")
    keys = set(read_properties(PROPERTIES)) - {"vmargs"}  # the Python launcher reads that one
    assert [key for key in sorted(keys) if not is_constant(key, code)] == []
    assert not is_constant("inference_adress", code)


def test_the_known_keys_of_the_model_config_are_torchserves() -> None:
    code = java_class("org/pytorch/serve/archive/model/ModelConfig.class")
    assert [key for key in sorted(KNOWN_KEYS) if not is_constant(key, code)] == []
    assert not is_constant("batchsize", code)


def test_torchserve_knows_every_key_and_frontend_metric_of_metrics_yaml() -> None:
    config = yaml.safe_load(METRICS_CONFIG.read_text(encoding="utf-8"))
    assert set(config) == {"ts_metrics", "model_metrics"}
    spec = java_class("org/pytorch/serve/metrics/configuration/MetricSpecification.class")
    for kinds in config.values():
        assert set(kinds) <= {"counter", "gauge", "histogram"}
        for metric in (metric for metrics in kinds.values() for metric in metrics):
            assert set(metric) == {"name", "unit", "dimensions"}
            assert all(is_constant(key, spec) for key in metric)
    defaults = importlib.util.find_spec("ts")
    assert defaults is not None and defaults.origin is not None
    theirs = yaml.safe_load((Path(defaults.origin).parent / "configs" / "metrics.yaml").read_text(encoding="utf-8"))
    for kind, metrics in config["ts_metrics"].items():
        known = {metric["name"]: metric for metric in theirs["ts_metrics"][kind]}
        assert all(known[metric["name"]] == metric for metric in metrics if metric["name"] in known)
        assert {metric["name"] for metric in metrics} <= set(known)


@pytest.mark.parametrize("name", ["config.properties", MODEL_CONFIG])
def test_every_key_has_a_comment(name: str) -> None:
    previous = ""
    for line in (CONFIG / name).read_text(encoding="utf-8").splitlines():
        key = re.match(r"\s*([A-Za-z_]+)\s*[=:]", line)
        if key and not line.lstrip().startswith("#") and line.strip() != "limits:":
            related = previous.split("_", maxsplit=1)[0] == key[1].split("_")[0]  # grpc_…: one comment for the group
            assert previous.startswith("#") or related, f"{name}: {key[1]} has no comment"
        previous = "#" if line.lstrip().startswith("#") else (key[1] if key else "")


def test_everything_listens_on_loopback_on_the_ports_of_the_documents() -> None:
    properties = read_properties(PROPERTIES)
    assert {k: v for k, v in properties.items() if k.endswith(("_address", "_port"))} == {
        "inference_address": "http://127.0.0.1:5000",
        "management_address": "http://127.0.0.1:5001",
        "metrics_address": "http://127.0.0.1:5002",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": "5003",
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": "5004",
    }
    assert properties["metrics_mode"] == "prometheus"
    assert not re.match(properties["allowed_urls"], "http://example.com/x.mar")
    assert not re.match(properties["allowed_urls"], "file:///x.mar")


def test_flags_of_serve_replace_settings() -> None:
    properties = server_properties(6000, "0.0.0.0", "::1", workers=3, token=True, metrics_host="10.0.0.7")
    assert properties["inference_address"] == "http://0.0.0.0:6000"
    assert properties["management_address"] == "http://[::1]:6001"
    assert properties["metrics_address"] == "http://10.0.0.7:6002"
    assert (properties["grpc_inference_port"], properties["grpc_management_port"]) == ("6003", "6004")
    assert properties["default_workers_per_model"] == "3"
    assert properties["disable_token_authorization"] == "false"
    assert Path(properties["metrics_config"]) == METRICS_CONFIG
    assert properties["max_request_size"] == read_properties(PROPERTIES)["max_request_size"]
    assert not [name for name in properties if name.startswith("cors")]
    cors = server_properties(6000, "0.0.0.0", "::1", workers=3, token=True, cors_origin="https://shop.example")
    assert cors["cors_allowed_origin"] == "https://shop.example"
    assert cors["cors_allowed_methods"] == "GET, POST"


def test_the_model_config_is_accepted() -> None:
    config = check_model_config(yaml.safe_load((CONFIG / MODEL_CONFIG).read_text(encoding="utf-8")))
    limits = config["limits"]
    assert (limits["max_image_pixels"], limits["max_instances"]) == (100_000_000, 64)
    assert limits["max_decode_seconds"] < limits["max_wait_seconds"] <= config["responseTimeout"] / 3
    assert limits["max_wait_seconds"] < SECONDS < config["responseTimeout"]
    assert f"-XX:MaxRAMPercentage={100 * JAVA_SHARE:.0f} " in read_properties(PROPERTIES)["vmargs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsize": 1}, "has the key 'batchsize', which TorchServe doesn't know; known are asyncCommunication"),
        ({"limits": {"max_image_pixels": 5}}, "limits must hold max_decode_seconds, max_image_pixels, max_instances"),
        ({"limits": {**LIMITS, "max_instances": -5}}, "positive numbers"),
        ({"limits": {**LIMITS, "integrated_gradients": 1}}, "and integrated_gradients, true or false"),
    ],
    ids=["unknown-key", "missing-limit", "negative-limit", "no-switch"],
)
def test_a_wrong_model_config_is_refused(change: dict[str, object], message: str) -> None:
    config = yaml.safe_load((CONFIG / MODEL_CONFIG).read_text(encoding="utf-8"))
    with pytest.raises(CommandError, match=message):
        check_model_config({**config, **change})
    with pytest.raises(CommandError, match="must be a mapping"):
        check_model_config([])


def test_the_largest_answer_fits_what_torchserve_takes() -> None:
    """64 instances with ``topk`` of 1,600 classes ended the worker that answered."""
    limit = int(read_properties(PROPERTIES)["max_response_size"])
    check_answers([f"a label of usual length {i}" for i in range(1600)], 64)
    labels = ["ユ" * 100] * 1600
    with pytest.raises(
        CommandError, match=r"64 instances with all of 1600 classes .* set max_instances in .* to \d+,"
    ) as told:
        check_answers(labels, 64)
    (most,) = map(int, re.findall(r"max_instances in \S+ to (\d+)", str(told.value)))
    check_answers(labels, most)
    with pytest.raises(CommandError):
        check_answers(labels, most + 1)
    pictures = top_predictions(np.zeros((1, 1600), np.float32), labels, 1600)
    largest = prediction_response(pictures * most, "", with_top=True, instances=True).body
    assert limit - len(largest) / most < len(largest) <= limit


def test_the_bundled_model_fits_its_labels_file_and_the_repository() -> None:
    model = read_model_folder(BUNDLED)
    folders = json.loads((CONFIG / "bundled-labels.json").read_text(encoding="utf-8"))
    assert model.labels == sorted(set(folders.values()))
    assert model.weights.stat().st_size <= 10_000_000
    accuracy = model.card.accuracy
    assert accuracy["oxford-pets"]["top1"] >= 0.68
    assert accuracy["imagewoof"]["top1"] >= 0.82
    assert accuracy["other"]["top1"] >= 0.85
    assert accuracy["test"]["ece"] <= 0.05
    assert accuracy["test"]["per_class"]["Samoyed"]["top1"] >= 0.9


def test_a_gpu_takes_batches_and_a_processor_does_not() -> None:
    cpu, gpu = (yaml.safe_load(model_config(gpu)) for gpu in (False, True))
    assert (cpu["batchSize"], gpu["batchSize"]) == (1, 32)
    assert {key for key in cpu if cpu[key] != gpu[key]} == set(yaml.safe_load((CONFIG / GPU_CONFIG).read_text()))
    assert check_model_config(gpu) == gpu
