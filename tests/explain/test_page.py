"""The page of an explanation, its sheet and its numbers: in a browser and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

import undust
from browsing import WIDTHS, overflow, violations
from undust.errors import UndustError
from undust.explain import Explanation, write_explanation
from undust.explain.effect import Effect
from undust.explain.explanation import ExplainedPart, explain_model, real_pictures
from undust.explain.explanation_folder import rounded
from undust.explain.figures import Frames, Line, LineChart, TextTable
from undust.explain.result import PartResult
from undust.explain.setup import Setup
from undust.explain.texts import LANGUAGES, Language, Translation

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = '<img src=x onerror=alert(1)></script><script>alert(2)</script> "고양이" \' {{ 7*7 }}'
NAMES = ("first", "second", "third")


def frames(control: str, size: tuple[int, int] = (600, 90)) -> Frames:
    images = [Image.new("RGB", size, (90 * k, 60, 160)) for k in range(len(NAMES))]
    return Frames(f"{control} {HOSTILE}", NAMES, images, HOSTILE, control, note="note")  # type: ignore[arg-type]


def explanation(language: Language) -> Explanation:
    """Figures of every kind, without the time that measuring takes."""
    model = undust.load("emoji", engine="torch")
    setup = Setup(
        model,
        [HOSTILE, HOSTILE],
        [0, 1],
        real_pictures(model, None),
        Translation(language),
        10,
        4.0,
    )
    chart = LineChart(
        "chart", "x axis", "y axis", [Line(HOSTILE, [1, 2, 3], [1, 4, 2], [0.1, 0.2, 0.3])]
    )
    arrows = LineChart("plane", "", "", [Line("path", [0, 1], [0, 1], arrow=True)], square=True)
    table = TextTable("table", ["", "b"], [[HOSTILE, "1"], ["row", "2"]], "note")
    figures = [
        frames("slider"),
        frames("buttons"),
        frames("words", (192, 192)),
        chart,
        arrows,
        table,
    ]
    effects = [
        Effect("up", "goes up", [1.0, 2.0, 3.1], [0.0, 1.0, 2.0], "higher"),
        Effect("down", "goes down", [1.0, 2.0, 3.1], [0.0, 1.0, 2.0], "lower"),
        Effect("none", "stays", [1.0, 2.0], [2.0, 1.0], "lower"),
        Effect("open", "no claim", [1.0, 2.0], [2.0, 1.0]),
    ]
    result = PartResult(figures, effects, {"more": [1.0, float("nan")]})
    return Explanation(setup, [ExplainedPart("unet", 4, result, 1.5)])


@pytest.fixture(scope="module", params=LANGUAGES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("explanations") / request.param
    return write_explanation(place, explanation(request.param))


def test_the_files(folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "unet.json", "unet.png"]
    with Image.open(folder / "unet.png") as sheet:
        assert sheet.width == 860
        assert sheet.height > 1000
    found = json.loads((folder / "unet.json").read_text("utf-8"))
    assert [each["verdict"] for each in found["effects"]] == [
        "as claimed",
        "opposite",
        "unclear",
        "no claim",
    ]
    assert found["effects"][0]["values"] == [1.0, 2.0, 3.1]
    assert found["charts"][0]["lines"][0]["spread"] == [0.1, 0.2, 0.3]
    assert found["tables"][0]["rows"][1] == ["row", "2"]
    assert found["numbers"] == {"more": [1.0, None]}
    with pytest.raises(UndustError, match="not empty"):
        write_explanation(folder, explanation("en"))


def test_it_fits_and_hostile_text_is_text(folder: Path, page: Page):
    page.goto((folder / "index.html").as_uri())
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert overflow(page) == 0
    assert page.evaluate("document.documentElement.lang") == folder.name
    assert page.locator("img[src=x], script:not(head script, body > script)").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    assert page.get_by_text("{{ 7*7 }}").count() > 0
    assert page.locator("svg .band, svg .head").count() == 2


def test_axe_finds_nothing_on_it(folder: Path, page: Page):
    page.goto((folder / "index.html").as_uri())
    assert violations(page) == []


def test_all_can_be_moved_by_keyboard_and_pointer(folder: Path, page: Page):
    page.goto((folder / "index.html").as_uri())

    def shown(control: str) -> list[str]:
        items = page.locator(f".frames[data-control={control}] li").all()
        return [item.get_attribute("data-label") or "" for item in items if item.is_visible()]

    slider = page.locator("input[type=range]")
    slider.focus()
    assert (shown("slider"), slider.get_attribute("aria-valuetext")) == (["first"], "first")
    page.keyboard.press("ArrowRight")
    assert (shown("slider"), slider.get_attribute("aria-valuetext")) == (["second"], "second")
    buttons = page.locator("[data-control=buttons] button")
    buttons.nth(2).focus()
    assert shown("buttons") == ["first"]
    page.keyboard.press("Enter")
    assert shown("buttons") == ["third"]
    assert [each.get_attribute("aria-pressed") for each in buttons.all()] == [
        "false",
        "false",
        "true",
    ]
    words = page.locator("[data-control=words] button")
    words.nth(1).hover()
    assert shown("words") == ["second"]
    page.mouse.move(0, 0)
    assert shown("words") == ["first"]
    words.nth(2).focus()
    assert shown("words") == ["third"]


def test_all_is_there_without_scripts(folder: Path, browser, page: Page):  # type: ignore[no-untyped-def]
    page.goto((folder / "index.html").as_uri())
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto((folder / "index.html").as_uri())
    assert all(image.is_visible() for image in plain.locator(".strip img").all())
    assert not plain.locator("input, .choices button").first.is_visible()
    context.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["u-nett"]}, "did you mean 'unet'"),
        ({"seeds": 1}, "at least 2"),
        ({"pictures": Path("/nowhere")}, "not a folder"),
    ],
)
def test_wrong_values(options: dict[str, object], message: str):
    model = undust.load("emoji", engine="torch")
    with pytest.raises(UndustError, match=message):
        explain_model(model, **options)  # type: ignore[arg-type]


def test_other_models_need_a_prompt(tiny_model: Path):
    with pytest.raises(UndustError, match="needs a prompt"):
        explain_model(undust.load(tiny_model), ["unet"])


def test_another_model(tiny_model: Path, tmp_path: Path):
    """Of other sizes, with pictures of one's own; the model draws the same before and after."""
    for number in range(3):
        Image.new("RGB", (50, 40), (80 * number, 9, 9)).save(tmp_path / f"{number}.png")
    model = undust.load(tiny_model, engine="torch")
    options = {"steps": 2, "seed": 1}
    before = model.generate("a cat", **options)[0].latent  # type: ignore[arg-type]
    found = explain_model(
        model, ["unet"], prompt="a cat", pictures=tmp_path, seeds=2, steps=2, guidance=2
    )
    assert found.setup.pictures.shape == (3, 3, *model.size)
    assert [part.name for part in found.parts] == ["unet"]
    assert torch.equal(model.generate("a cat", **options)[0].latent, before)  # type: ignore[arg-type]


def test_numbers_are_finite_or_null():
    assert rounded({"a": (1 / 3, float("inf")), "b": "text", "c": None}) == {
        "a": [0.333333, None],
        "b": "text",
        "c": None,
    }
