"""From labelled pictures to a served model with three commands, and the report, on real pictures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.clients.browser import chromium
from tests.support.pictures.golden import PACKAGED
from tests.support.pictures.scenes import write_scenes
from tests.support.servers.running import called, command, serving


@dataclass(frozen=True)
class Trained:
    """A small model trained by ``train.py`` from scratch, and other views of the same photographs."""

    scenes: Path
    more: Path
    out: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of three classes."""
    folder = tmp_path_factory.mktemp("training")
    scenes, more = write_scenes(folder / "scenes"), write_scenes(folder / "more", per_class=8, seed=1)
    out = folder / "runs" / "mine"
    result = command(
        *("train.py", str(scenes), "--out", str(out), "--growth-rate", "8", "--blocks", "2,2", "--init-features", "16"),
        *("--crop", "48", "--epochs", "10", "--batch", "8", "--ema", "0.9"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(
        f"report: {out}/report.html\ndone: {out}; serve it with: python3 scripts/serve.py --weights {out}\n"
    )
    return Trained(scenes, more, out)


def evaluated(trained: Trained, folder: Path) -> dict[str, Any]:
    """What ``evaluate.py`` says of the other views; its page is ``folder/report.html``."""
    result = command(
        *("evaluate.py", str(trained.more), "--weights", str(trained.out)),
        *("--json", str(folder / "report.json"), "--report", str(folder / "report.html")),
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert f"top-1 {report['total']['top1']:.4f}" in result.stdout
    return report


def test_train_evaluate_serve(trained: Trained, tmp_path: Path) -> None:
    report = evaluated(trained, tmp_path)
    assert report["total"]["pictures"] == 24
    assert report["total"]["top1"] >= 0.75, "chance is 0.33"
    assert sum(cell["pictures"] for cell in report["confusion"]) == 24

    with serving(tmp_path / "store", "--workers", "1", weights=trained.out) as server:
        assert "READY" in server.output and "mine (compact, 3 classes)" in server.output
        for golden in PACKAGED:
            picture = sorted((trained.more / golden.name).iterdir())[0]
            expected = next(p for p in report["predictions"] if p["path"] == str(picture))
            answer = requests.put(server.predictions, data=picture.read_bytes(), timeout=60).json()
            assert answer["label"] == expected["predicted"]
            assert abs(answer["probability"] - expected["probability"]) < 1e-4


def test_a_training_is_not_overwritten(trained: Trained) -> None:
    again = called("train.py", str(trained.scenes), "--out", str(trained.out))
    assert again.returncode == 1
    assert again.stderr == (
        f"error: {trained.out} holds a training already; continue it with --resume, or choose another --out\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 360], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(trained: Trained, tmp_path: Path, width: int, scheme: Any) -> None:
    report = evaluated(trained, tmp_path)
    wrong = [p for p in report["predictions"] if p["predicted"] != p["label"]]
    problems: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        for path, sections in (
            (tmp_path / "report.html", {"calibration", "worst", "matrix", "classes", "training"}),
            (trained.out / "report.html", {"calibration", "worst", "matrix", "classes", "training", "curves"}),
        ):
            page.goto(path.as_uri())
            found = {section.get_attribute("id") for section in page.locator("section").all()}
            assert sections <= found
            assert all(section.is_visible() for section in page.locator("section").all())
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            plots = page.locator("svg").all()
            assert plots
            for plot in plots:
                box = plot.bounding_box()
                assert box is not None and box["width"] > 200 and box["height"] > 60
            page.screenshot(path=tmp_path / f"{path.parent.name}-{width}-{scheme}.png", full_page=True)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator("#worst img").count() == min(24, len(wrong))
        assert page.locator("dd").first.inner_text().startswith(f"{100 * report['total']['top1']:.1f} %")
        diagonal = page.locator("#matrix td.right").all_inner_texts()
        assert sum(map(int, diagonal)) == 24 - len(wrong)
        assert page.locator("#classes tbody tr").count() == 3
        contrast = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        light, dark = sorted((sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in contrast), reverse=True)
        assert light - dark > 500, "text and page are far apart in both schemes"
    assert problems == []
