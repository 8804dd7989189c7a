from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from undust.formats.film import write_film
from undust.training import kinds, recipe_templates

Run = Callable[..., Any]


def test_a_recipe_is_written_once(undust: Run, here: Path):
    for name in ("cats/1", "cats/2", "dogs/1", "dogs/2"):
        (here / "some pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 50)).save(here / "some pictures" / f"{name}.png")
    made = undust("init", "classes", "some pictures")
    assert (made.code, made.out) == (0, "classes.toml\n")
    assert "4 pictures, the shorter side 50 pixels, of 2 classes" in made.err
    assert "undust train classes.toml" in made.err
    assert kinds.read(Path("classes.toml")).data.folder == Path("some pictures")
    named = undust("init", "classes", "--out", "my classes.toml")
    assert named.err.endswith("then: undust train 'my classes.toml'\n")
    again = undust("init", "classes")
    assert again.code == 2
    assert "classes.toml exists" in again.err


def test_a_recipe_for_videos(undust: Run, here: Path):
    (here / "clips").mkdir()
    write_film(here / "clips/a.mp4", [Image.new("RGB", (64, 48))] * 3, 8, {})
    made = undust("init", "film", "clips")
    assert made.code == 0, made.err
    assert kinds.read(Path("film.toml")).data.size == 48
    assert undust("init", "unconditional", "clips").code != 0


def test_all_are_listed(undust: Run):
    listed = undust("init").out
    assert all(name in listed for name in recipe_templates.names())
