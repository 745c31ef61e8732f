"""The page as people meet it: in real Chromium, from the real server."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, FileChooser, Page, expect

from scripts.lib.model_folder import read_model_folder, write_model_folder
from scripts.lib.paths import BUNDLED
from tests.support.clients.browser import PATIENCE_MS, Visit, choose, chromium, settled, visit
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA, PACKAGED
from tests.support.servers.front_door import front_door
from tests.support.servers.running import Running, command, serving
from tests.support.servers.worker import tiny_card, tiny_state

pytestmark = pytest.mark.slow

MODEL = read_model_folder(BUNDLED)
PICTURES = [golden.path for golden in PACKAGED]
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
MARKUP = "<b>bold<b> & 'quoted'.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium for the tests of this file."""
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, server: Running) -> Iterator[Visit]:
    """The page, fresh. Whatever a test does, it asks nobody but the server and throws nothing."""
    with visit(browser, server.predictions) as visited:
        yield visited
        assert {urlsplit(a).netloc for a in visited.addresses} <= {urlsplit(server.url).netloc}
        assert not [m for m in visited.messages if "Failed to load resource" not in m]  # what a refusal logs


def predicted(server: Running, picture: Path) -> Any:
    """The server's answer to a program."""
    files = {"file": (picture.name, picture.read_bytes())}
    return requests.post(server.predictions, files=files, data={"topk": "5"}, timeout=60).json()


def percent(probability: float) -> str:
    """A probability as the page shows it."""
    return "<\u00a00.1\u00a0%" if 0 < probability < 0.0005 else f"{100 * probability:.1f}\u00a0%"


def transfer(page: Page, event: str, picture: Path, name: str) -> None:
    """Drop or paste a picture, as the browser reports it."""
    page.evaluate(
        """([event, name, data]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
            const options = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
            const made = event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options);
            document.getElementById("about").dispatchEvent(made);
        }""",
        [event, name, base64.b64encode(picture.read_bytes()).decode()],
    )


# --- pictures ---------------------------------------------------------------------------------------


def test_several_pictures_get_what_a_program_gets(opened: Visit, server: Running) -> None:
    choose(opened.page, *PICTURES)
    expect(opened.page.locator("#answers-title")).to_have_text("3 pictures")
    results = opened.page.locator(".result")
    expect(results).to_have_count(3)
    for number, picture in enumerate(PICTURES):
        result, answer = results.nth(number), predicted(server, picture)
        expect(result.locator(".file")).to_have_text(picture.name)
        expect(result.locator(".label")).to_have_text(answer["label"])
        expect(result.locator(".top button")).to_have_text(
            [t["label"] + percent(t["probability"]) for t in answer["top"]]
        )
        widths = result.locator(".bar").evaluate_all("bars => bars.map((b) => b.style.getPropertyValue('--share'))")
        assert [float(width) for width in widths] == [t["probability"] for t in answer["top"]]
        expect(result.locator(".figures")).to_contain_text("answered in")
        assert result.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert not opened.messages


def test_many_pictures_are_sent_three_at_a_time(opened: Visit, tmp_path: Path) -> None:
    opened.page.evaluate(
        """() => {
            const fetched = window.fetch;
            window.underWay = window.most = 0;
            window.fetch = async (...request) => {
                window.most = Math.max(window.most, ++window.underWay);
                try { return await fetched(...request); } finally { window.underWay -= 1; }
            };
        }"""
    )
    copies = [Path(shutil.copy(PICTURES[0], tmp_path / f"{number:02}.png")) for number in range(10)]
    choose(opened.page, *copies)
    expect(opened.page.locator(".label").filter(has_text="Abyssinian")).to_have_count(10)
    assert [c.name for c in copies] == opened.page.locator(".file").all_inner_texts()
    assert opened.page.evaluate("() => window.most") == 3


def test_pictures_are_dropped_and_pasted_anywhere(opened: Visit, server: Running) -> None:
    label = predicted(server, CHELSEA)["label"]
    transfer(opened.page, "dragenter", CHELSEA, "dropped.png")
    expect(opened.page.locator("#veil")).to_be_visible()
    transfer(opened.page, "drop", CHELSEA, "dropped.png")
    expect(opened.page.locator("#veil")).to_be_hidden()
    transfer(opened.page, "paste", CHELSEA, "pasted.png")
    settled(opened.page)
    expect(opened.page.locator(".file")).to_have_text(["dropped.png", "pasted.png"])
    expect(opened.page.locator(".label")).to_have_text([label, label])
    for name in ("dropped.png", "pasted.png"):
        expect(opened.page.get_by_role("log")).to_contain_text(f"{name}: {label}")


def test_a_broken_file_is_named_and_harms_no_other(opened: Visit, tmp_path: Path) -> None:
    broken, text = tmp_path / "broken.png", tmp_path / "notes.png"
    broken.write_bytes(CHELSEA.read_bytes()[:50_000])
    text.write_text("not a picture", encoding="utf-8")
    choose(opened.page, broken, CHELSEA, text)
    results = opened.page.locator(".result")
    for number in (0, 2):
        expect(results.nth(number).locator(".message")).to_have_text("This file can’t be read as a picture.")
        expect(results.nth(number).locator(".said")).to_contain_text("The server said: received")
        expect(results.nth(number).locator(".again")).to_be_hidden()  # it wouldn't help
    expect(results.nth(2).locator(".placeholder")).to_have_text("PNG")
    expect(results.nth(1).locator(".message")).to_be_hidden()
    expect(results.nth(1).locator(".top button")).to_have_count(5)


def test_what_is_too_large_is_said(opened: Visit, tmp_path: Path) -> None:
    large, bomb = tmp_path / "large.png", tmp_path / "bomb.png"
    large.write_bytes(CHELSEA.read_bytes() + bytes(40_000_000))
    Image.new("1", (20_000, 20_000)).save(bomb)
    choose(opened.page, large, bomb)
    messages = opened.page.locator(".message")
    expect(messages).to_have_text(
        ["This file is too large for the server: 40.2 MB. Send a smaller one.", "This picture has too many pixels."]
    )


def test_clearing_starts_again(opened: Visit) -> None:
    choose(opened.page, CHELSEA)
    opened.page.get_by_role("button", name="Clear all").click()
    expect(opened.page.locator("#answers")).to_be_hidden()
    expect(opened.page.locator("#drop-title")).to_have_text("Drop pictures here")
    choose(opened.page, CHELSEA)
    expect(opened.page.locator(".result")).to_have_count(1)


# --- where it looked, the command line, the model ----------------------------------------------------


def test_the_switch_shows_where_it_looked(opened: Visit, server: Running) -> None:
    page = opened.page
    choose(page, CHELSEA)
    expect(page.locator(".heat")).to_be_hidden()
    page.get_by_role("switch", name="Where did it look?").click()
    expect(page.locator(".heat")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(".top button").nth(0)).to_have_attribute("aria-pressed", "true")
    # the heat lies on the part of the picture that the network sees
    answer = requests.put(f"{server.url}/explanations/densenet", data=CHELSEA.read_bytes(), timeout=60).json()
    left, top, right, bottom = answer["region"]
    width, height = answer["picture"]
    picture, heat = (page.locator(s).bounding_box() for s in (".picture", ".heat"))
    assert picture and heat
    assert heat["x"] - picture["x"] == pytest.approx(picture["width"] * left / width, abs=1)
    assert heat["y"] - picture["y"] == pytest.approx(picture["height"] * top / height, abs=1)
    assert heat["width"] == pytest.approx(picture["width"] * (right - left) / width, abs=1)
    assert heat["height"] == pytest.approx(picture["height"] * (bottom - top) / height, abs=1)
    drawn = "canvas => canvas.toDataURL().split(',')[1]"
    first = page.locator(".heat").evaluate(drawn)
    with Image.open(io.BytesIO(base64.b64decode(first))) as image:
        assert len(image.getcolors(image.width * image.height) or []) > 100, "many shades"
    # another class
    page.locator(".top button").nth(2).click()
    expect(page.locator(".top button").nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".command code")).to_contain_text(f"target={predicted(server, CHELSEA)['top'][2]['index']} ")
    assert page.locator(".heat").evaluate(drawn) != first
    page.get_by_role("switch").click()
    expect(page.locator(".heat")).to_be_hidden()
    assert not opened.messages


def test_a_class_can_be_clicked_before_the_switch(opened: Visit) -> None:
    choose(opened.page, CHELSEA)
    opened.page.locator(".top button").nth(1).click()
    expect(opened.page.get_by_role("switch")).to_be_checked()
    expect(opened.page.locator(".heat")).to_be_visible(timeout=PATIENCE_MS)
    expect(opened.page.locator(".top button").nth(1)).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("name", ["chelsea.png", 'it\'s my "cat"; no, $HOME.png'])
def test_the_command_line_does_what_was_just_done(browser: Browser, server: Running, tmp_path: Path, name: str) -> None:
    shutil.copy(CHELSEA, tmp_path / name)
    permissions = ["clipboard-read", "clipboard-write"]
    with visit(browser, server.predictions, permissions=permissions) as visited:
        page = visited.page
        choose(page, tmp_path / name)
        page.get_by_role("switch").click()
        expect(page.locator(".heat")).to_be_visible(timeout=PATIENCE_MS)
        page.locator("summary").click()
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = page.evaluate("() => navigator.clipboard.readText()")
        label = page.locator(".label").inner_text()
    assert copied.count("\n") == 1
    done = subprocess.run(["bash", "-c", copied], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["label"] == label
    assert len(json.loads(done.stdout)["top"]) == 5
    assert (tmp_path / "looked.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_is_described_and_its_classes_are_found(opened: Visit) -> None:
    page, test = opened.page, MODEL.card.accuracy["test"]
    expect(page.locator("#name")).to_have_text(MODEL.card.name)
    expect(page.locator("#lead")).to_contain_text(f"right on {percent(test['top1'])} of 2,029 test pictures")
    expect(page.locator("#tiles")).to_contain_text(f"Right within five{percent(test['top5'])}")
    expect(page.locator("#facts")).to_contain_text(MODEL.card.dataset)
    entries = page.locator("#classes li:visible")
    expect(entries).to_have_count(len(MODEL.labels))
    page.get_by_label("Search the classes").fill("TERRIER")
    wanted = [label for label in MODEL.labels if "terrier" in label.lower()]
    expect(entries).to_have_count(len(wanted))
    expect(page.locator("#found")).to_have_text(f"{len(wanted)} of {len(MODEL.labels)} classes")
    right = round(100 * test["per_class"][wanted[0]]["top1"])
    expect(entries.first).to_have_text(f"{wanted[0]}{right}\u00a0% right")
    page.get_by_label("Search the classes").fill("zebra")
    expect(page.locator("#found")).to_have_text(f"0 of {len(MODEL.labels)} classes")
    assert not opened.messages


# --- everybody --------------------------------------------------------------------------------------


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus, and check that this can be seen."""
    wanted = page.locator(selector)
    for _ in range(40):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            near = "[e, e.parentElement, e.nextElementSibling]"
            outlined = f"e => {near}.some((x) => x && getComputedStyle(x).outlineStyle === 'solid')"
            assert wanted.evaluate(outlined), f"nothing shows that {selector} has the focus"
            return
    raise AssertionError(f"{selector} can't be reached with Tab")


def test_the_keyboard_is_enough(opened: Visit) -> None:
    page = opened.page
    tab_to(page, ".skip")
    tab_to(page, "#files")
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # noqa: PLW0108 (it takes no built-in method)

    def asked() -> bool:
        page.keyboard.press("Enter")  # again, if a busy machine's browser dropped it
        page.wait_for_timeout(1000)
        return bool(choosers)

    wait_until(asked)
    choosers[0].set_files(str(CHELSEA))
    settled(page)
    tab_to(page, "#look")
    page.keyboard.press("Space")
    expect(page.locator(".heat")).to_be_visible(timeout=PATIENCE_MS)
    tab_to(page, ".top li:nth-child(2) button")
    page.keyboard.press("Enter")
    expect(page.locator(".top button").nth(1)).to_have_attribute("aria-pressed", "true")
    tab_to(page, "summary")
    page.keyboard.press("Enter")
    tab_to(page, ".copy")
    page.keyboard.press("Enter")
    expect(page.locator(".copy")).to_have_text("Copied")
    tab_to(page, "#search")
    page.keyboard.type("samoyed")
    expect(page.locator("#classes li:visible")).to_have_count(1)
    tab_to(page, "#classes")  # a list that scrolls


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(browser: Browser, server: Running, tmp_path: Path, scheme: Any) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(CHELSEA.read_bytes()[:50_000])
    for width in (1280, 360):
        with visit(browser, server.predictions, width, color_scheme=scheme, reduced_motion="reduce") as visited:
            page = visited.page
            brightness = page.evaluate(
                "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            )
            assert max(brightness) < 60 if scheme == "dark" else min(brightness) > 200
            assert_accessible(page, f"{scheme}, {width} px, empty")
            choose(page, CHELSEA, broken, PICTURES[1])
            assert_accessible(page, f"{scheme}, {width} px, results")
            page.get_by_role("switch").click()
            expect(page.locator(".heat:visible")).to_have_count(2, timeout=PATIENCE_MS)
            page.locator("summary").first.click()
            assert_accessible(page, f"{scheme}, {width} px, where it looked")


def assert_accessible(page: Page, state: str) -> None:
    """No violation of axe-core's rules, WCAG 2.2 AA and best practices, and nothing to the side of the window."""
    found = Axe().run(page, options={"rules": {"target-size": {"enabled": True}}})
    assert found.violations_count == 0, f"{state}: {found.generate_report()}"
    assert len(found.response["passes"]) > 20, "the rules ran"
    widths = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], f"{state}: {widths[0]} px wide"


def test_a_phone_may_take_a_photograph(browser: Browser, server: Running, opened: Visit) -> None:
    expect(opened.page.get_by_text("Take a photograph")).to_be_hidden()
    with visit(browser, server.predictions, 360, 740, has_touch=True, is_mobile=True) as visited:
        page = visited.page
        expect(page.get_by_text("Take a photograph")).to_be_visible()
        assert page.locator("#camera").get_attribute("capture") == "environment"
        page.set_input_files("#camera", str(CHELSEA))
        settled(page)
        expect(page.locator(".top button")).to_have_count(5)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360


def test_the_page_works_through_the_front_door(browser: Browser, server: Running) -> None:
    """At ``/`` of the real nginx, whose own headers and limits must not stand in its way."""
    label = predicted(server, CHELSEA)["label"]
    with front_door(f"127.0.0.1:{server.port}") as door, visit(browser, f"{door.url}/") as visited:
        page = visited.page
        choose(page, PICTURES[1])
        transfer(page, "drop", CHELSEA, "dropped.png")
        settled(page)
        expect(page.locator(".label")).to_have_text([predicted(server, PICTURES[1])["label"], label])
        page.get_by_role("switch", name="Where did it look?").click()
        expect(page.locator(".heat:visible")).to_have_count(2, timeout=PATIENCE_MS)
        expect(page.locator(".command code").last).to_contain_text(f"{door.url}/explanations/densenet")
        assert not visited.messages, "a violation of the Content-Security-Policy is one, too"
        assert {urlsplit(address).netloc for address in visited.addresses} == {f"127.0.0.1:{door.port}"}
        for path in ("/", "/predictions/densenet", "/explanations/densenet"):
            assert door.log(uri=path)["status"] == 200


# --- nobody else ------------------------------------------------------------------------------------


def test_the_policy_holds(opened: Visit) -> None:
    tried = opened.page.evaluate(
        """async () => {
            const broken = [];
            document.addEventListener("securitypolicyviolation", (e) => broken.push(e.effectiveDirective));
            const attempt = async (act) => { try { await act(); } catch { /* refused */ } };
            await attempt(() => { document.body.innerHTML = "<p onclick='window.hacked = 1'>"; });
            await attempt(() => {
                const script = document.createElement("script");
                script.append("window.hacked = 1");
                document.body.append(script);
            });
            await attempt(() => document.body.setAttribute("style", "color: red"));
            await attempt(() => {
                const image = document.body.appendChild(new Image());
                image.src = "http://127.0.0.1:9/x.png";
            });
            await attempt(() => fetch("http://127.0.0.1:9/"));
            await new Promise((done) => setTimeout(done, 0));
            return [broken, window.hacked ?? null, document.querySelectorAll("#drop").length];
        }"""
    )
    assert set(tried[0]) >= {"require-trusted-types-for", "style-src-attr", "img-src", "connect-src"}
    assert tried[1:] == [None, 1]
    opened.messages.clear()  # each violation is logged, and what was stopped is reported as begun
    opened.addresses.clear()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of its own, to be misused, whose labels are markup."""
    labels = [HOSTILE, "</script><script>document.title='hacked'</script>", *(f"<i>{n}</i>" for n in range(5))]
    folder = tmp_path_factory.mktemp("hostile")
    write_model_folder(folder / "model", tiny_state(), tiny_card(), labels)
    with serving(folder / "store", "--workers", "1", weights=folder / "model") as running:
        yield running


def test_markup_in_labels_and_names_is_text(browser: Browser, other: Running, tmp_path: Path) -> None:
    shutil.copy(CHELSEA, tmp_path / MARKUP)
    with visit(browser, other.predictions) as visited:
        page = visited.page
        choose(page, tmp_path / MARKUP)
        expect(page.locator(".file")).to_have_text(MARKUP)
        expect(page.locator(".top button").filter(has_text=HOSTILE)).to_have_count(1)
        expect(page.locator("#classes li").first).to_have_text(HOSTILE)
        expect(page.locator("#tiles")).to_contain_text("not measured")
        page.get_by_role("switch").click()
        expect(page.locator(".heat")).to_be_visible(timeout=PATIENCE_MS)
        assert "hacked" not in page.title()
        assert page.locator("#classes *:not(li)").count() == page.locator(".result i, .result b").count() == 0
        assert not visited.messages


def test_a_busy_server_is_asked_again_and_a_dead_one_is_named(browser: Browser, other: Running) -> None:
    def workers(number: int) -> None:
        model = f"{other.management}/models/densenet"
        assert requests.put(f"{model}?min_worker={number}&max_worker={number}", timeout=60).status_code == 202
        wait_until(lambda: len(requests.get(model, timeout=60).json()[0]["workers"]) == number)

    with visit(browser, other.predictions) as visited:
        page = visited.page
        workers(0)
        page.set_input_files("#files", str(CHELSEA))
        expect(page.locator(".note")).to_contain_text("The server is busy. Trying again", timeout=PATIENCE_MS)
        workers(1)
        settled(page)
        if page.locator(".again").is_visible():  # the worker took longer to start than the page tries
            page.locator(".again").click()
            settled(page)
        expect(page.locator(".top button")).to_have_count(5)
        command("stop.py", "--port", str(other.port))
        choose(page, CHELSEA)
        expect(page.locator(".message").nth(1)).to_contain_text("The server doesn’t answer. Is it still running?")
        page.locator(".again").nth(1).click()
        settled(page)
        expect(page.locator(".message").nth(1)).to_contain_text("The server doesn’t answer.")
        page.get_by_role("switch").click()
        expect(page.locator(".message").nth(0)).to_contain_text("The server doesn’t answer.", timeout=PATIENCE_MS)
        expect(page.locator(".label").nth(0)).not_to_be_empty()  # what was answered stays
