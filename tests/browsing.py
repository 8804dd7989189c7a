"""A browser for tests of pages."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (360, 1280)  # of a phone and of a desk
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium: that of scripts/browser, or the system's."""
    own, environment = Path(sys.prefix) / "browser", dict[str, str | float | bool](os.environ)
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if (own / "versions").is_file():
        found = str(own / "chromium")
        environment |= {"LD_LIBRARY_PATH": str(own / "lib"), "FONTCONFIG_PATH": str(own)}
    if not found or not find_spec("playwright"):
        reason = "no Chromium: .venv/bin/python scripts/browser brings one" if not found else ""
        reason = reason or "no playwright: it is in undust[test]"
        if os.environ.get("UNDUST_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found, args=list(FLAGS), env=environment
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty tab; at its end it has had no error and no request but for the page."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 800})
    tab, faults = context.new_page(), list[str]()
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    context.close()
    assert not faults
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def violations(page: Page) -> list[tuple[str, str]]:
    """What axe-core finds against accessibility (WCAG, contrast included), in light and dark."""
    axe = Path(sys.prefix, "browser", "axe.min.js")
    if not axe.is_file():
        pytest.skip("no axe-core: .venv/bin/python scripts/browser brings it")
    page.evaluate(axe.read_text("utf-8"))
    found: list[tuple[str, str]] = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        result = page.evaluate("axe.run({resultTypes: ['violations']})")
        found += [(each["id"], each["nodes"][0]["html"]) for each in result["violations"]]
    return found
