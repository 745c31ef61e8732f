"""Real headless Chromium for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.machine.programs import program

PATIENCE_MS = 120_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that asks nobody on the internet for anything."""
    path = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
                *("--disable-background-networking", "--disable-component-update"),
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that is open, and what a test of it has to know.

    ``messages``: what it wrote to the console and what it threw. ``addresses``: what it asked for over the network.
    """

    page: Page
    messages: list[str]
    addresses: list[str]


@contextmanager
def visit(browser: Browser, address: str, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Visit]:
    """Open an address in a fresh window of ``width`` × ``height`` px; ``options`` are Playwright's for a context."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    try:
        opened = Visit(context.new_page(), [], [])
        opened.page.on("console", lambda message: opened.messages.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.messages.append(f"thrown: {error}"))
        context.on("request", lambda r: opened.addresses.append(r.url) if r.url.startswith("http") else None)
        opened.page.goto(address)
        yield opened
    finally:
        context.close()


def choose(page: Page, *files: Path | str) -> None:
    """Choose files and wait for all answers."""
    page.set_input_files("#files", [str(file) for file in files])
    settled(page)


def settled(page: Page) -> None:
    """Wait until no picture waits for its answer."""
    expect(page.locator(".result").first).to_be_visible()
    expect(page.locator(".busy")).to_have_count(0, timeout=PATIENCE_MS)
