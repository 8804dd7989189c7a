"""`undust data check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from undust.formats.film import write_film

Run = Callable[..., Any]
RECIPE = "captions.fields: no picture has a caption in text; "


@pytest.mark.parametrize(
    ("row", "says", "code"),
    [
        ({}, ["0 of 2 pictures", "the data has no captions: put one beside"], 0),
        ({"text": " "}, ["0 of 2 pictures", "columns without any value: text"], 1),
        ({"caption": None}, ["0 of 2 pictures", "columns without any value: caption"], 1),
        (
            {"year": 1990, "tags": ["a"]},
            ["0 of 2 pictures", "no captions, and numbers alone in year:", "tags (a list)"],
            0,
        ),
        ({"artist": "x"}, ["the data has the columns artist (2): name one of them"], 0),
    ],
)
def test_data_without_captions(
    undust: Run, here: Path, row: dict[str, object], says: list[str], code: int
):
    """The exit code is that of data in which something is wrong, which bare pictures are not."""
    lines: list[str] = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(here / name)
        lines.append(json.dumps({"file_name": name, **row}))
    (here / "metadata.jsonl").write_text("\n".join(lines))
    result = undust("data", "check", here)
    assert result.code == code
    text = " ".join(result.out.split())
    assert RECIPE in text
    for each in says:
        assert each in text
    assert "undust data check" not in text  # which is what runs


def videos(folder: Path) -> None:
    for name, count in {"a.mp4": 3, "b.mp4": 5}.items():
        write_film(folder / name, [Image.new("RGB", (16, 8))] * count, 8, {})


def test_videos_are_films(undust: Run, here: Path):
    videos(here)
    result = undust("data", "check", here)
    said = 'videos: 2, 16x8 (2), 3–5 frames; kind = "film" trains on them'
    assert (result.code, result.out.splitlines()[-1]) == (0, said)
    row = {"file_name": "a.mp4", "text": "a pan", "fps": 9}
    (here / "metadata.jsonl").write_text(json.dumps(row))
    result = undust("data", "check", here)
    assert result.code == 0
    assert "without any value" not in result.out
    assert "1 not named in the metadata, not used:\n  b.mp4" in result.out
    (here / "metadata.jsonl").unlink()
    result = undust("data", "check", here)
    assert "pictures" not in result.out
    (here / "c.mkv").write_text("no film")
    Image.new("RGB", (8, 8)).save(here / "d.png")
    result = undust("data", "check", here)
    assert result.code == 1
    assert said in result.out
    assert "1 broken:\n  " in result.out
    assert "0 of 1 picture" in result.out


@pytest.mark.parametrize("suffix", ["png", "gif", "webp"])
def test_all_frames_of_an_animation_are_read(undust: Run, here: Path, suffix: str):
    """Its first one can be read."""
    noise = [Image.effect_noise((16, 16), 60 + k).convert("RGB") for k in range(5)]
    noise[0].save(here / f"whole.{suffix}", save_all=True, append_images=noise[1:], duration=125)
    assert undust("data", "check", here).code == 0
    content = (here / f"whole.{suffix}").read_bytes()
    (here / f"cut.{suffix}").write_bytes(content[: round(0.9 * len(content))])
    result = undust("data", "check", here)
    assert result.code == 1
    [told] = result.out.partition("1 broken:\n")[2].splitlines()
    assert f"cut.{suffix}" in told


def test_videos_are_listed_without_the_package(
    undust: Run, here: Path, monkeypatch: pytest.MonkeyPatch
):
    videos(here)
    monkeypatch.setitem(sys.modules, "av", None)
    result = undust("data", "check", here)
    assert result.code == 0
    assert "videos: 2, not read" in result.out
    assert "pip install 'undust[video]'" in result.out
