"""What images for tests take of this machine's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.deployment.images import DEBIAN, debian_mirror
from tests.support.machine.programs import program

ONE_LINE = "# none\ndeb [arch=amd64] https://mirror.example/pub/debian/ bookworm main\n"
MANY_LINES = "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
SWITCHED_OFF = f"{MANY_LINES}Enabled: no\n"
ANOTHER = "deb http://mirror.example/ubuntu noble main\ndeb mirror+file:/etc/mirrors/debian bookworm main\n"


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        ("sources.list", ONE_LINE, "https://mirror.example/pub/debian"),
        ("parts/debian.sources", MANY_LINES, "http://mirror.example/debian"),
        ("parts/debian.sources", SWITCHED_OFF, DEBIAN),
        ("sources.list", ANOTHER, DEBIAN),
    ],
    ids=["one-line", "deb822", "switched-off", "another-system"],
)
def test_the_mirror_is_that_of_apt(
    name: str, text: str, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("apt-get", package="apt")
    (tmp_path / "parts").mkdir()
    (tmp_path / name).write_text(text, encoding="ascii")
    settings = tmp_path / "apt.conf"
    settings.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "{tmp_path}/parts";', encoding="ascii"
    )
    monkeypatch.setenv("APT_CONFIG", str(settings))
    assert debian_mirror() == mirror


def test_without_apt_it_is_debians_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian_mirror() == DEBIAN
