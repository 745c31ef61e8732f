"""The pictures of docs/tour.md, taken anew; ``UPDATE_DOCS=1`` in the environment keeps them.

The photographs are scikit-image's: chelsea.png and coffee.png (CC0), astronaut.png (NASA, public domain).
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
import requests
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from scripts.lib.paths import ROOT
from tests.support.clients.browser import PATIENCE_MS, choose, chromium, settled, visit
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running

pytestmark = pytest.mark.slow

IMAGES = ROOT / "docs" / "images"
TOUR = ROOT / "docs" / "tour.md"
MOST_BYTES = 300_000
COFFEE, ASTRONAUT = CHELSEA.with_name("coffee.png"), CHELSEA.with_name("astronaut.png")


def save(picture: bytes, path: Path) -> None:
    """A screenshot with 256 colours: a quarter of the bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


def shoot(shown: Page | Locator, path: Path) -> None:
    """Keep what is shown, once pictures and bars have come to rest."""
    save(shown.screenshot(animations="disabled"), path)


def look(page: Page, number: int) -> None:
    """Turn the switch and wait for all heat maps."""
    page.get_by_role("switch").click()
    expect(page.locator(".heat:visible")).to_have_count(number, timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def taken(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every picture of the tour."""
    folder = tmp_path_factory.mktemp("tour")
    broken = folder / "holiday.jpg"
    broken.write_bytes(CHELSEA.read_bytes()[:50_000])
    with chromium() as browser:
        calm = {"reduced_motion": "reduce"}
        with visit(browser, server.predictions, 1100, 1010, **calm) as visited:
            shoot(visited.page, folder / "page.png")
            choose(visited.page, CHELSEA, ASTRONAUT, COFFEE)
            shoot(visited.page, folder / "page-results.png")
            shoot(visited.page.locator("#about"), folder / "page-model.png")
        with visit(browser, server.predictions, 1100, 900, color_scheme="dark", **calm) as visited:
            choose(visited.page, CHELSEA)
            look(visited.page, 1)
            visited.page.locator("summary").click()
            visited.page.evaluate("() => scrollTo(0, 190)")
            shoot(visited.page, folder / "page-where.png")
        with visit(browser, server.predictions, 390, 844, has_touch=True, is_mobile=True, **calm) as visited:
            visited.page.set_input_files("#camera", str(CHELSEA))
            settled(visited.page)
            look(visited.page, 1)
            shoot(visited.page, folder / "page-phone.png")
        with visit(browser, server.predictions, 760, 900, **calm) as visited:
            choose(visited.page, broken)
            visited.page.route("**/*", lambda route: route.abort())  # as if the server had gone
            choose(visited.page, COFFEE)
            shoot(visited.page.locator("#results"), folder / "page-errors.png")
    for method in ("grad-cam", "integrated-gradients"):
        answer = requests.post(
            f"{server.url}/explanations/densenet",
            files={"file": CHELSEA.read_bytes()},
            data={"method": method},
            headers={"Accept": "image/png"},
            timeout=120,
        )
        save(answer.content, folder / f"{method}.png")
    broken.unlink()
    if os.environ.get("UPDATE_DOCS"):
        IMAGES.mkdir(exist_ok=True)
        for path in folder.glob("*.png"):
            (IMAGES / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_tours_pictures_are_those_that_the_page_gives(taken: Path) -> None:
    for path in sorted(taken.glob("*.png")):
        kept = IMAGES / path.name
        assert kept.is_file(), f"take it with UPDATE_DOCS=1: {kept}"
        assert max(path.stat().st_size, kept.stat().st_size) < MOST_BYTES
        with Image.open(path) as new, Image.open(kept) as old:
            assert new.width == old.width
            assert new.height == pytest.approx(old.height, rel=0.1), f"{path.name} has changed: UPDATE_DOCS=1"


def test_the_documents_show_them_all(taken: Path) -> None:
    documents = (ROOT / "README.md", TOUR, ROOT / "docs" / "explanations.md")
    shown = {name for d in documents for name in re.findall(r"images/([\w-]+\.png)\)", d.read_text(encoding="utf-8"))}
    assert shown == {path.name for path in taken.glob("*.png")}
