"""The benchmark in its quick form: it runs, both sides answer, and what it reports is whole. No times are judged."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import command
from tests.golden import PACKAGED


def test_the_benchmark_compares_with_stock_torchserve(tmp_path: Path) -> None:
    picture = next(golden.path for golden in PACKAGED if golden.name == "flower")
    result = command(
        *("benchmark.py", "--weights", "bundled", "--picture", str(picture), "--out", str(tmp_path)),
        *("--repeats", "2", "--requests", "4", "--concurrency", "1,2"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert set(report["contenders"]) == {"ours", "stock"}
    assert all(len(samples) == 2 for samples in report["samples"].values())
    for figure in ("start_s", "rss", "c1_throughput", "c2_p50"):
        for contender in report["summary"][figure]["contenders"].values():
            assert 0 < contender["min"] <= contender["median"] <= contender["max"]
    assert (tmp_path / "benchmark.md").read_text(encoding="utf-8").strip() in result.stdout


def test_the_benchmark_says_what_it_can_not_send(tmp_path: Path) -> None:
    result = command("benchmark.py", "--weights", "bundled", "--picture", str(tmp_path / "missing.jpg"))
    assert result.returncode == 1
    assert "missing.jpg: No such file or directory; give the path of a picture" in result.stderr
