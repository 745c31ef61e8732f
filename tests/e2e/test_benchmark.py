"""The benchmark in its quick form: it runs, both sides answer, and what it reports is whole. No times are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.machine.network import alone_in_a_network
from tests.support.pictures.golden import PACKAGED
from tests.support.servers.running import called

pytestmark = pytest.mark.slow


def test_the_benchmark_compares_with_stock_torchserve_and_asks_nobody(tmp_path: Path) -> None:
    """TorchServe's own handler imports OpenVINO, which would report it."""
    picture, out = next(golden.path for golden in PACKAGED if golden.name == "flower"), tmp_path / "out"
    with alone_in_a_network(tmp_path) as alone:
        told = alone.command(
            *("scripts/benchmark.py", "--weights", "bundled", "--picture", str(picture), "--out", str(out)),
            *("--repeats", "2", "--requests", "4", "--concurrency", "1,2", "--rate", "4", "--warm-up", "2"),
            *("--contenders", "ours,stock,bare"),
        )
        assert alone.attempts() == []
        assert alone.strays() == []
    report = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    assert set(report["contenders"]) == {"ours", "stock", "bare"}
    assert all(len(samples) == 2 for samples in report["samples"].values())
    servers, all_three = {"ours", "stock"}, {"ours", "stock", "bare"}
    wanted = {"start_s": servers, "rss": all_three, "c1_throughput": all_three, "c2_cpu": all_three, "r4_p50": servers}
    for figure, having in wanted.items():
        contenders = report["summary"][figure]["contenders"]
        assert set(contenders) == having
        for each in contenders.values():
            assert 0 < each["min"] <= each["median"] <= each["max"]
    table, _, plots = (out / "benchmark.md").read_text(encoding="utf-8").partition("\n![")
    assert table.strip() in told
    for name in ("throughput.png", "latency.png", "cpu.png"):
        assert name in plots
        assert (out / name).stat().st_size > 5000


def test_the_benchmark_says_what_it_can_not_send(tmp_path: Path) -> None:
    result = called("benchmark.py", "--weights", "bundled", "--picture", str(tmp_path / "missing.jpg"))
    assert result.returncode == 1
    assert "missing.jpg: No such file or directory; give the path of a picture" in result.stderr
