"""A trace as files: numbers, panels where they belong, letters of any language, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import undust
from undust.conditioning.text import PromptWord
from undust.errors import UndustError
from undust.explain import Trace, labels, trace, trace_pictures, write_trace
from undust.explain.trace_pictures import COLUMNS, chosen_places, heat_picture, overlay
from undust.formats.film import read_film_recipe
from undust.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def found(tiny_model: Path) -> Trace:
    model = undust.load(tiny_model, engine="torch")
    return trace(model, "a (cat:1.2) 고양이", seed=2, steps=4, size=(32, 48))


def test_files(found: Trace, tmp_path: Path):
    decoded: list[tuple[int, int]] = []
    folder = write_trace(tmp_path / "a" / "b", found, lambda *numbers: decoded.append(numbers))
    names = {path.name for path in folder.iterdir()}
    assert names == {"trace.json", "strip.png", "words.png", "trace.webp"}
    assert decoded == [(1, 4), (2, 4), (3, 4), (4, 4)]
    told = json.loads((folder / "trace.json").read_text("utf-8"))
    assert told["recipe"]["prompt"] == "a (cat:1.2) 고양이"
    assert [word["text"] for word in told["words"]] == ["a", "cat", "고양이"]
    assert sum(word["share"] for word in told["words"]) == pytest.approx(1, abs=1e-3)
    assert len(told["steps"]) == 4
    for step, own in zip(told["steps"], found.steps, strict=True):
        assert step["sigma"] == pytest.approx(own.sigma, rel=1e-3)
        assert step["x_rms"] == pytest.approx(float(own.x.square().mean().sqrt()), rel=1e-3)
        assert len(step["words"]) == 3
        assert all(0 <= place <= 1 for word in step["words"] for place in word["centre"])
    with Image.open(folder / "trace.webp") as film:
        assert film.n_frames == 4
    assert Recipe.read(read_film_recipe(folder / "trace.webp")) == found.picture.recipe


def test_a_folder_with_something_in_it_is_kept(found: Trace, tmp_path: Path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UndustError, match="not empty"):
        write_trace(tmp_path, found)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_failure_leaves_nothing(found: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace_pictures, "word_sheet", fail)
    with pytest.raises(UndustError, match="No space left"):
        write_trace(tmp_path / "out", found)
    assert [*tmp_path.iterdir()] == []


def test_steps_in_the_strip():
    assert chosen_places(4) == [0, 1, 2, 3]
    for steps in (COLUMNS + 1, 20, 1000):
        places = chosen_places(steps)
        assert len(places) == len(set(places)) == COLUMNS
        assert (places[0], places[-1]) == (0, steps - 1)
        assert places == sorted(places)


def test_colours_rise_in_lightness():
    """Also in grey, and to every eye, more is lighter."""
    ramp = torch.linspace(0, 1, 64)[None]
    grey = heat_picture(ramp, (64, 1)).convert("L")
    levels = [grey.getpixel((place, 0)) for place in range(64)]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 200


def test_an_overlay_is_coloured_where_the_map_is_high():
    values = torch.zeros(8, 8) + 0.1
    values[:4, :4] = 0.9
    image = overlay(Image.new("RGB", (64, 64), (40, 90, 200)), values)
    inside, outside = image.getpixel((12, 12)), image.getpixel((52, 52))
    assert inside[0] - inside[2] > 100, "orange"
    assert max(outside) - min(outside) <= 1, "grey"


def test_words_that_no_font_has(found: Trace, monkeypatch: pytest.MonkeyPatch):
    """Korean is transcribed, and nothing fails, for words and prompts of any letters."""
    labels._fonts.cache_clear()
    monkeypatch.setattr(labels, "FONTS", ("absent.ttf",))
    try:
        assert labels._shown("빨간 heart", 14)[0] == "bbalgan heart"
        assert labels._shown("e\u0301té", 14)[0] == "ete"
        assert labels._shown("猫🚀", 14)[0] == "??"
        words = (PromptWord("猫" * 99, (1,)), *found.words[1:])
        other = Trace(found.picture, words, found.steps, found.decode)
        assert trace_pictures.word_sheet(other).width < 1100
    finally:
        monkeypatch.undo()
        labels._fonts.cache_clear()
