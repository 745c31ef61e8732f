"""From labelled pictures to a served model with three commands, on real pictures."""

from __future__ import annotations

import json
from pathlib import Path

import requests

from tests.e2e.conftest import command, serving
from tests.golden import PACKAGED
from tests.scenes import write_scenes


def test_train_evaluate_serve(tmp_path: Path) -> None:
    scenes, more = write_scenes(tmp_path / "scenes"), write_scenes(tmp_path / "more", per_class=8, seed=1)
    out = tmp_path / "runs" / "mine"
    trained = command(
        *("train.py", str(scenes), "--out", str(out), "--growth-rate", "8", "--blocks", "2,2", "--init-features", "16"),
        *("--crop", "48", "--epochs", "10", "--batch", "8", "--ema", "0.9"),
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.endswith(f"serve it with: python3 scripts/serve.py --weights {out}\n")

    evaluated = command("evaluate.py", str(more), "--weights", str(out), "--json", str(tmp_path / "report.json"))
    assert evaluated.returncode == 0, evaluated.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["total"]["pictures"] == 24
    assert report["total"]["top1"] >= 0.75, "chance is 0.33"

    with serving(tmp_path / "store", "--workers", "1", weights=out) as server:
        assert "READY" in server.output and "mine (compact, 3 classes)" in server.output
        for golden in PACKAGED:
            picture = sorted((more / golden.name).iterdir())[0]
            expected = next(p for p in report["predictions"] if p["path"] == str(picture))
            answer = requests.put(server.predictions, data=picture.read_bytes(), timeout=60).json()
            assert answer["label"] == expected["predicted"]
            assert abs(answer["probability"] - expected["probability"]) < 1e-4

    again = command("train.py", str(scenes), "--out", str(out))
    assert again.returncode == 1
    assert again.stderr == (
        f"error: {out} holds a training already; continue it with --resume, or choose another --out\n"
    )
