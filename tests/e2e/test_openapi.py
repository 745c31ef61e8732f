"""docs/openapi.yaml against the running server: nothing that is fuzzed gets a 5xx, every answer conforms.

The description's own example, a picture of one pixel, sees to it that there are answers beside errors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from scripts.lib.model_folder import read_model_folder
from scripts.lib.paths import BUNDLED, OPENAPI, ROOT
from tests.support.servers.running import Running

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection"
)
LABELS = read_model_folder(BUNDLED).labels
EXAMPLES = 25
"""For each operation, beside those that cover the limits."""


def test_every_answer_to_a_fuzzer_is_as_described(server: Running, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(
                str(Path(sys.executable).with_name("schemathesis")),
                "--config-file",
                "tests/e2e/schemathesis.toml",
                "run",
            ),
            *(str(OPENAPI), "--url", server.url, "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", str(EXAMPLES), "--generation-deterministic", "--request-timeout", "60"),
            *("--continue-on-failure", "--no-color"),
            *("--report", "har", "--report-har-path", str(tmp_path / "har.json")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.e2e.openapi_hooks"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    log = json.loads((tmp_path / "har.json").read_text(encoding="utf-8"))["log"]
    served = {
        (entry["request"]["method"], urlsplit(entry["request"]["url"]).path)
        for entry in log["entries"]
        if entry["response"]["status"] == 200
    }
    described = {
        (method.upper(), path.format(version="1.0"))
        for path, operations in yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))["paths"].items()
        for method in operations.keys() & {"get", "put", "post"}
    }
    # the page needs an Accept, which OpenAPI doesn't describe: tests/e2e/test_page.py
    assert described - served == {("GET", "/predictions/densenet")}


def test_the_description_knows_the_bundled_model() -> None:
    text = yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))
    schemas = text["components"]["schemas"]
    assert (schemas["TopK"]["maximum"], schemas["Target"]["maximum"]) == (len(LABELS), len(LABELS) - 1)


@pytest.mark.parametrize("path", ["/predictions/densenet", "/predictions/densenet/1.0"])
def test_options_answers_with_the_description(server: Running, path: str) -> None:
    answer = requests.options(f"{server.url}{path}", timeout=60)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))
