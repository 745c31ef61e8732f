"""The benchmark in its quick form: it runs, both sides answer, and what it reports is whole. No times are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.pictures.golden import PACKAGED
from tests.support.servers.running import called, command

pytestmark = pytest.mark.slow


def test_the_benchmark_compares_with_stock_torchserve(tmp_path: Path) -> None:
    picture = next(golden.path for golden in PACKAGED if golden.name == "flower")
    result = command(
        *("benchmark.py", "--weights", "bundled", "--picture", str(picture), "--out", str(tmp_path)),
        *("--repeats", "2", "--requests", "4", "--concurrency", "1,2", "--rate", "4", "--warm-up", "2"),
        *("--contenders", "ours,stock,bare"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert set(report["contenders"]) == {"ours", "stock", "bare"}
    assert all(len(samples) == 2 for samples in report["samples"].values())
    servers, all_three = {"ours", "stock"}, {"ours", "stock", "bare"}
    wanted = {"start_s": servers, "rss": all_three, "c1_throughput": all_three, "c2_cpu": all_three, "r4_p50": servers}
    for figure, having in wanted.items():
        contenders = report["summary"][figure]["contenders"]
        assert set(contenders) == having
        for each in contenders.values():
            assert 0 < each["min"] <= each["median"] <= each["max"]
    table, _, plots = (tmp_path / "benchmark.md").read_text(encoding="utf-8").partition("\n![")
    assert table.strip() in result.stdout
    for name in ("throughput.png", "latency.png", "cpu.png"):
        assert name in plots
        assert (tmp_path / name).stat().st_size > 5000


def test_the_benchmark_says_what_it_can_not_send(tmp_path: Path) -> None:
    result = called("benchmark.py", "--weights", "bundled", "--picture", str(tmp_path / "missing.jpg"))
    assert result.returncode == 1
    assert "missing.jpg: No such file or directory; give the path of a picture" in result.stderr
