"""CONTRIBUTING names files, tests and words of the code: each is there."""

from __future__ import annotations

import re

from scripts.lib.paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_path_is_there() -> None:
    named = set(re.findall(r"`((?:\.?[\w-]+/)+[\w.*-]*)(?:::\w+)?`", TEXT))
    assert len(named) > 30
    assert [path for path in sorted(named) if not path.startswith(".venv/") and not list(ROOT.glob(path))] == []


def test_every_test_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) >= 10
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_every_name_is_there() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "handler").glob("*.py"))
    code += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts" / "lib").glob("*.py"))
    named = set(re.findall(r"`(_?[A-Z]{4,}|_limit|check_model_config)`", TEXT))
    assert {"FORMATS", "ARCHITECTURES", "_limit"} <= named
    assert [name for name in sorted(named) if not re.search(rf"^(?:def )?{name}\b", code, re.MULTILINE)] == []
