"""The page in Chromium: no error, no request, at the widths of a phone and of a desk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from browsing import WIDTHS, overflow, violations
from undust.report.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MakeRun = Callable[..., Path]


def test_a_page_of_two_runs(make_run: MakeRun, page: Page):
    folder = make_run("both/first-stage").parent
    make_run("both/diffusion")
    page.goto(write_report(folder).as_uri())
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert overflow(page) == 0
    assert page.locator("h2").count() == 2
    assert page.locator("canvas").count() == page.locator(".chart").count() > 8
    assert page.locator("img:not([alt])").count() == 0
    assert page.get_by_text("빨간 고양이").first.is_visible()
    assert page.locator("img[src=x], script:not(head script, body > script)").count() == 0


def test_the_slider_and_the_curves_follow_the_keyboard(make_run: MakeRun, page: Page):
    page.goto(write_report(make_run()).as_uri())
    shown = page.locator(".strip > li.current img")
    slider = page.get_by_label("Step", exact=True)
    assert (shown.get_attribute("alt") or "").startswith("Samples at step 40")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert (shown.get_attribute("alt") or "").startswith("Samples at step 20")
    assert slider.get_attribute("aria-valuetext") == "20"
    page.keyboard.press("Home")
    assert page.locator(".samples output").inner_text() == "10"

    chart = page.locator(".chart", has=page.get_by_role("heading", name="Pixel"))
    at, value = chart.locator("output").nth(0), chart.locator("output").nth(1)
    chart.locator(".plot").focus()
    for _ in range(36):
        page.keyboard.press("ArrowLeft")
    assert (at.inner_text(), value.inner_text()) == ("4", "0.25")
    page.keyboard.press("+")
    assert chart.get_by_role("button", name="Whole run").is_visible()
    page.keyboard.press("Escape")
    assert chart.get_by_role("button", name="Whole run").is_hidden()
    chart.get_by_label("log scale").uncheck()
    box = chart.locator(".u-over").bounding_box()
    assert box
    page.mouse.move(box["x"] + 1, box["y"] + 9)
    assert at.inner_text() == "1"


def test_nothing_moves_and_all_is_there_without_scripts(
    make_run: MakeRun, browser: Browser, page: Page
):
    path = write_report(make_run()).as_uri()
    without = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 800})
    plain = without.new_page()
    plain.goto(path)
    page.goto(path)
    assert plain.locator("svg").count() == page.locator("canvas").count() > 4
    assert plain.locator(".strip img").count() == 3
    assert all(each.is_visible() for each in plain.locator(".strip img").all())
    heights = [
        [each.bounding_box() for each in tab.locator(".plot").all()] for tab in (plain, page)
    ]
    assert [box and box["height"] for box in heights[0]] == [
        box and box["height"] for box in heights[1]
    ]
    without.close()
    shifts = """new Promise(done => new PerformanceObserver(list => done(
        list.getEntries().reduce((sum, entry) => sum + entry.value, 0)
    )).observe({type: "layout-shift", buffered: true}) || setTimeout(() => done(0), 200))"""
    assert page.evaluate(shifts) == 0


def test_axe_finds_nothing(make_run: MakeRun, page: Page):
    folder = make_run("both/first-stage").parent
    make_run("both/diffusion")
    page.goto(write_report(folder).as_uri())
    assert violations(page) == []
