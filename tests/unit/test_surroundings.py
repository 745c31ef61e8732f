"""What of a person's environment reaches the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.lib import paths
from scripts.lib.paths import ROOT
from tests.support.machine.surroundings import clean, outside

HOSTILE = {
    **{f"DENSENET_{name}": "x" for name in ("TORCH_INDEX", "WEIGHTS", "SHA256", "TOKEN", "NO_VENV", "LOG_SIZE")},
    **dict.fromkeys(("DENSENET_RUN", "DENSENET_CACHE", "DENSENET_MODEL_STORE", "XDG_CACHE_HOME", "TORCH_HOME"), "/x"),
    **dict.fromkeys(("JAVA_HOME", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "PYTHONPATH"), "/x"),
    **dict.fromkeys(("UV_INDEX_URL", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PAGER"), "7"),
}
KEPT = {"PATH": "/bin", "CI": "1", "DENSENET_FUZZ_SEED": "7", "SSL_CERT_FILE": "x", "PIP_INDEX_URL": "x"}
PROXIES = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "example.com"}


@pytest.mark.parametrize("variable", [{}, {"XDG_CONFIG_HOME": ".settings"}], ids=["home", "xdg"])
def test_settings_go_and_the_way_to_the_internet_stays(tmp_path: Path, variable: dict[str, str]) -> None:
    config = tmp_path / "mine" / variable.get("XDG_CONFIG_HOME", ".config") / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.touch()
    places = {name: str(tmp_path / "mine" / place) for name, place in variable.items()}
    environment = {**HOSTILE, **KEPT, **places, **PROXIES, "HOME": str(tmp_path / "mine")}
    folder = tmp_path / "fresh"
    folder.mkdir()
    clean(environment, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_PROXIES", environment.pop("TESTS_PROXIES"))
        assert outside() == PROXIES
    assert environment == {
        **KEPT,
        "PIP_CONFIG_FILE": str(config),
        "HOME": str(folder / "home"),
        "DENSENET_CACHE": str(folder / "cache"),
        "MPLCONFIGDIR": str(folder / "cache" / "matplotlib"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "cache" / "hypothesis"),
        "DENSENET_RUN": str(folder / "run"),
        "DENSENET_MODEL_STORE": str(folder / "model_store"),
    }


def test_these_tests_have_it_so() -> None:
    assert Path(os.environ["DENSENET_CACHE"]) == paths.CACHE
    for path in (paths.CACHE, paths.RUN, paths.MODEL_STORE):
        assert path.parent == Path.home().parent
        assert not path.is_relative_to(ROOT)
    assert os.umask(0o022) == 0o022
