"""Films as training samples, frame by frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from undust.datasets import image_folder
from undust.datasets.films import Frame, frames_of
from undust.errors import UndustError


def still(shade: int) -> Image.Image:
    return Image.new("RGB", (8, 6), (shade, 0, 255 - shade))


def animated(path: Path, shades: list[int], **options: Any) -> None:
    first, *others = map(still, shades)
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, **lossless, **options)


def frames(folder: Path) -> list[Frame]:
    return frames_of(image_folder.read(folder))


def shade(frame: Frame) -> int:
    return int(np.array(frame.image())[0, 0, 0])


@pytest.mark.parametrize("suffix", ["webp", "png", "gif"])
def test_an_animated_picture_is_a_film(suffix: str, tmp_path: Path):
    animated(tmp_path / f"a.{suffix}", [10, 80, 200], duration=100)
    found = frames(tmp_path)
    assert [shade(frame) for frame in found] == [10, 80, 200]
    assert [shade(frame) for frame in reversed(found)] == [200, 80, 10]
    assert {(frame.fps, frame.motion, frame.size()) for frame in found} == {(10, 127, (8, 6))}
    assert len({frame.content_hash() for frame in found}) == 3
    assert len({frame.group for frame in found}) == 1


def test_a_picture_for_programs_that_do_not_animate_is_no_frame(tmp_path: Path):
    """Of an animated PNG; with a single frame besides, it is a still."""
    animated(tmp_path / "a.png", [99, 10, 80], default_image=True, duration=[100, 100])
    found = frames(tmp_path)
    assert [shade(frame) for frame in found] == [10, 80]
    assert {frame.fps for frame in found} == {10}
    animated(tmp_path / "a.png", [99, 10], default_image=True)
    [only] = frames(tmp_path)
    assert (only.number, shade(only)) == (None, 99)


def test_a_folder_of_stills_is_a_film(tmp_path: Path):
    for folder, shades in {"one": [5, 6], "two": [7, 8, 9]}.items():
        (tmp_path / folder).mkdir()
        for place, each in enumerate(shades):
            still(each).save(tmp_path / folder / f"{place:03}.png")
    found = frames(tmp_path)
    assert [(frame.film.name, shade(frame)) for frame in found] == [
        *(("one", 5), ("one", 6), ("two", 7), ("two", 8), ("two", 9))
    ]
    assert {frame.fps for frame in found} == {7}
    assert len({frame.group for frame in found}) == 2


def test_metadata_tells_frames_a_second_motion_split_and_caption(tmp_path: Path):
    animated(tmp_path / "a.webp", [1, 2], duration=50)
    row = {"file_name": "a.webp", "fps": 12, "motion": 30, "split": "test", "text": "a pan"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert {(f.fps, f.motion, f.split, f.captions["text"]) for f in frames(tmp_path)} == {
        (12, 30, "test", "a pan")
    }


@settings(max_examples=25)
@given(st.text(st.characters(codec="utf-8"), max_size=12))
@example("0")
@example("121")
@example("seven")
@example("1" * 5000)
@example("٣")
def test_other_numbers_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str):
    folder = tmp_path_factory.mktemp("film")
    animated(folder / "a.webp", [1, 2])
    row = {"file_name": "a.webp", "fps": text}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    try:
        found = frames(folder)
    except UndustError as error:
        assert "fps" in str(error)
        assert "\n" not in str(error)
    else:
        assert all(1 <= frame.fps <= 120 for frame in found)


def test_a_damaged_animation_is_named(tmp_path: Path):
    animated(tmp_path / "a.webp", [1, 2, 3])
    content = (tmp_path / "a.webp").read_bytes()
    found = frames(tmp_path)
    (tmp_path / "a.webp").write_bytes(content[: len(content) - 20])
    with pytest.raises(UndustError, match=r"a\.webp"):
        found[2].image()


def test_numbers_in_the_names_of_stills_are_in_order_of_their_value(tmp_path: Path):
    names = ("shot 2 frame9", "shot 2 frame10", "shot 10 frame1", "shot 10 frame02")
    for place, name in enumerate(names):
        still(place).save(tmp_path / f"{name}.png")
    assert [frame.still.path.stem for frame in frames(tmp_path)] == [*names]


def test_stills_of_metadata_are_in_the_order_of_its_rows(tmp_path: Path):
    names = ("b2.png", "b10.png", "a.png")
    for place, name in enumerate(names):
        still(place).save(tmp_path / name)
    rows = (json.dumps({"file_name": name}) for name in names)
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert [frame.still.path.name for frame in frames(tmp_path)] == [*names]


def test_the_group_of_stills_is_the_same_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in ("data/film", "moved/film"):
        (tmp_path / folder).mkdir(parents=True)
        for shade in (5, 6):
            still(shade).save(tmp_path / folder / f"{shade}.png")
    monkeypatch.chdir(tmp_path)
    places = (tmp_path / "data", Path("data"), Path("moved"))
    assert {frame.group for place in places for frame in frames(place)} == {"film"}


def test_the_group_of_stills_is_their_concept(tmp_path: Path):
    still(5).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "concept": "cups"}')
    assert [frame.group for frame in frames(tmp_path)] == ["cups"]


@pytest.mark.parametrize(("kind", "suffix"), [("MPO", "jpg"), ("TIFF", "tif")])
def test_further_pictures_in_a_photograph_are_no_frames(kind: str, suffix: str, tmp_path: Path):
    """Telephones store a picture for depths in a JPEG, cameras a small one in a TIFF."""
    for place, each in enumerate((5, 200)):
        small = still(9).resize((4, 3))
        path = tmp_path / f"{place}.{suffix}"
        still(each).save(path, format=kind, save_all=True, append_images=[small])
    found = frames(tmp_path)
    assert {(frame.film, frame.number) for frame in found} == {(tmp_path, None)}
    assert len(found) == 2
