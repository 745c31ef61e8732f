"""The measurement of costs in its quick form: it runs, and what it reports is whole. No times are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.lib.model_folder import read_model_folder
from scripts.lib.paths import BUNDLED
from tests.support.servers.running import called, command

pytestmark = pytest.mark.slow

PLOTS = ("architectures", "batch", "picture-size", "workers", "concurrency")
LOADS = ("throughput", "p50_ms", "p95_ms", "p99_ms", "cpu_ms")


def test_every_curve_is_measured(tmp_path: Path) -> None:
    result = command("measure_costs.py", "--quick", "--repeats", "1", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    costs = json.loads((tmp_path / "costs.json").read_text(encoding="utf-8"))
    times = {
        "architectures": ("ms",),
        "batch": ("ms",),
        "picture_size": ("reduced_ms", "exact_ms"),
        **dict.fromkeys(("workers", "concurrency", "bundled"), LOADS),
    }
    for section, keys in times.items():
        assert costs[section], section
        for row in costs[section]:
            for key in keys:
                assert 0 < row[key]["low"] <= row[key]["median"] <= row[key]["high"], (section, row)
    assert {row["name"] for row in costs["architectures"]} == {"densenet121", read_model_folder(BUNDLED).card.name}
    assert [row["concurrency"] for row in costs["concurrency"]] == [1, 4]
    assert all(row["refused"]["high"] == 0 for row in costs["concurrency"])  # the queue holds 100
    assert all(min(row["cpu_ms"], row["throughput"], row["machines"]) > 0 for row in costs["machines"])
    assert not any(row["estimated"] for row in costs["machines"])  # both were served
    assert costs["facts"]["machine"]["processor"]
    assert (tmp_path / "costs.md").read_text(encoding="utf-8").strip() in result.stdout
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PLOTS)


def test_a_picture_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(b"nothing")
    result = called("measure_costs.py", "--picture", str(tmp_path / "p.jpg"), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "p.jpg: received 7 bytes that are no picture" in result.stderr
    assert not (tmp_path / "out").exists()
