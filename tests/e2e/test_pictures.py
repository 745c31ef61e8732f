"""Every picture mode and every fault of a picture, through the real server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests

from handler.preprocessing import Preprocessing
from handler.runtimes import Runtime
from handler.topk import top_predictions
from scripts.lib.conversion import loaded
from scripts.lib.model_folder import read_model_folder
from scripts.lib.paths import BUNDLED
from scripts.lib.precision import Wanted, settle
from tests.support.pictures.made import Broken, Sample, broken, samples
from tests.support.servers.running import Running

MODEL = read_model_folder(BUNDLED)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    """The runtime that the server uses, in this process."""
    with loaded(MODEL, *settle(MODEL, Wanted())) as ready:
        yield ready


@pytest.mark.parametrize("sample", samples(), ids=lambda s: s.name)
def test_every_mode_is_answered_as_the_model_sees_it(server: Running, runtime: Runtime, sample: Sample) -> None:
    logits = runtime.logits(Preprocessing.of(MODEL.card).read(sample.data, 10**8)[None])
    ((expected,),) = top_predictions(logits, MODEL.labels, 1, MODEL.card.temperature)
    answer = requests.put(server.predictions, data=sample.data, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == expected.label
    assert answer.json()["probability"] == pytest.approx(expected.probability, abs=1e-4)


@pytest.mark.parametrize("fault", broken(), ids=lambda f: f.name)
def test_every_fault_is_named_and_harms_nobody(server: Running, fault: Broken) -> None:
    answer = requests.put(server.predictions, data=fault.data, timeout=60)
    error = answer.json()
    assert (answer.status_code, error["code"], error["type"]) == (fault.status, fault.status, fault.type)
    assert re.search(fault.message, error["message"]), error["message"]
