"""undust animate, and undust rerun of films."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from undust.formats.film import read_film_recipe

Run = Callable[..., Any]
QUICK = ("--frames", 3, "--steps", 2, "--size", "32x24", "--seed", 7)


@pytest.fixture
def photo() -> str:
    Image.radial_gradient("L").convert("RGB").save("photo.png")
    return "photo.png"


def frames_of(path: str) -> list[Image.Image]:
    with Image.open(path) as film:
        return [frame.convert("RGB").copy() for frame in ImageSequence.Iterator(film)]


def test_a_film_goes_to_the_default_folder(undust: Run, video_model: Path, photo: str):
    done = undust("animate", photo, "--model", video_model, *QUICK)
    assert (done.code, done.out) == (0, "undust-out/photo-7.webp\n")
    assert "3 frames of 32x24, 7 a second, 2 steps of euler" in done.err
    frames = frames_of("undust-out/photo-7.webp")
    assert [frame.size for frame in frames] == [(32, 24)] * 3
    again = undust("animate", photo, "--model", video_model, *QUICK)
    assert again.out == "undust-out/photo-7-2.webp\n"


@pytest.mark.parametrize("out", ["film.gif", "film.mp4", "film.webp", "frames"])
def test_every_kind_of_film_can_be_made_again(out: str, undust: Run, video_model: Path, photo: str):
    options = ("--fps", 9, "--motion", 30, "--guidance", "2:4", "--noise-augmentation", 0.1)
    done = undust("animate", photo, "--model", video_model, *QUICK, *options, "--out", out)
    assert (done.code, done.out) == (0, f"{out}\n")
    recipe = read_film_recipe(Path(out))
    asked = {"fps": 9, "motion": 30, "guidance": [2, 4], "noise_augmentation": 0.1, "seed": 7}
    assert {name: recipe[name] for name in asked} == asked
    other = f"again{Path(out).suffix}"
    done = undust("rerun", out, "--out", other)
    assert (done.code, done.out) == (0, f"{other}\n")
    if Path(out).is_dir():
        for frame in Path(out).iterdir():
            assert frame.read_bytes() == (Path(other) / frame.name).read_bytes()
    else:
        assert Path(out).read_bytes() == Path(other).read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--frames", 0), "frames: has to be greater than or equal to 2, not 0"),
        (("--frames", 1), "frames: has to be greater than or equal to 2, not 1"),
        (("--fps", 0), "fps: has to be greater than or equal to 1, not 0"),
        (("--motion", 300), "motion: has to be less than or equal to 255, not 300"),
        (("--guidance", "a:b"), "'a:b' is not LOW:HIGH, such as 1:3, or one number"),
        (("--guidance", "nan"), "guidance"),
        (("--size", "33x24"), "size: 33x24 is not divisible by 2; 32x24 would be"),
        (("--size", "34x24"), "size: 34x24 is not divisible by 4"),
        (("--size", "9000x9000"), "are too many pixels"),
        (("--sampler", "magic"), "magic"),
        (("--engine", "openvino"), "engine: openvino is not for films"),
        (("--out", "film.avi"), "film.avi"),
        (("--out", "film.gif", "--fps", 60), "60 frames per second"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    options: tuple[object, ...], told: str, undust: Run, video_model: Path, photo: str
):
    done = undust("animate", photo, "--model", video_model, *QUICK, *options)
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not Path("undust-out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--frames", 0), "frames: has to be greater than or equal to 2, not 0"),
        (("--fps", 0), "fps: has to be greater than or equal to 1, not 0"),
        (("--motion", 300), "motion: has to be less than or equal to 255, not 300"),
        (("--guidance", "a:b"), "'a:b' is not LOW:HIGH, such as 1:3, or one number"),
        (("--guidance", "nan"), "guidance"),
        (("--noise-augmentation", -1), "noise_augmentation"),
        (("--steps", 0), "steps: has to be greater than or equal to 1, not 0"),
        (("--seed", -1), "seed: has to be greater than or equal to 0, not -1"),
        (("--size", "0x64"), "width: has to be greater than 0, not 0"),
        (("--size", "9000x9000"), "are too many pixels"),
        (("--sampler", "magic"), "magic"),
        (("--schedule", "magic"), "magic"),
        (("--decoded-frames", 0), "decoded_frames"),
        (("--out", "film.avi"), "film.avi"),
        (("--out", "photo.png/film.mp4"), "photo.png is a file"),
        (("--out", "."), "cannot write the folder .: it exists and is not empty"),
    ],
)
def test_wrong_values_are_found_before_the_model_is_loaded(
    options: tuple[object, ...], told: str, undust: Run, photo: str
):
    done = undust("animate", photo, "--model", "absent", *QUICK, *options)
    assert done.code == 2
    assert told in done.err
    assert "absent" not in done.err
    assert "gone.png" in undust("animate", "gone.png", "--model", "absent").err


def test_a_film_begins_with_a_prompt(undust: Run, video_model: Path, tiny_model: Path):
    options = ("--prompt", "a cat", "--picture-model", tiny_model)
    done = undust("animate", *options, "--model", video_model, *QUICK, "--fps", 9)
    assert (done.code, done.out) == (0, "undust-out/a-cat-7.webp\n")
    film = Path(done.out.strip())
    recipe = read_film_recipe(film)
    first = recipe["picture_recipe"]
    made = {"prompt": "a cat", "seed": 7, "width": 32, "height": 24, "model_path": str(tiny_model)}
    assert {name: first[name] for name in made} == made
    assert undust("rerun", film, "--out", "again.webp").code == 0
    assert Path("again.webp").read_bytes() == film.read_bytes()
    for option in (("--json",), ("--vae", tiny_model)):
        done = undust("rerun", film, *option)
        assert (done.code, "are for pictures" in done.err) == (2, True)
    assert re.search("kind +film", undust("inspect", film).out)
    alone = undust(
        *("generate", "a cat", "--model", tiny_model, "--size", "32x24", "--seed", 7),
        *("--out", "cat.png"),
    )
    assert alone.code == 0
    undust("animate", "cat.png", "--model", video_model, *QUICK, "--fps", 9, "--out", "b.webp")
    with Image.open("b.webp") as other, Image.open(film) as whole:
        assert other.convert("RGB").tobytes() == whole.convert("RGB").tobytes()


def test_a_small_models_first_frame_is_resized(undust: Run, video_model: Path, tiny_model: Path):
    options = ("--prompt", "a cat", "--picture-model", tiny_model, "--model", video_model)
    done = undust("animate", *options, *QUICK, "--size", "96x96", "--out", "a.webp")
    assert done.code == 0, done.err
    recipe = read_film_recipe(Path("a.webp"))
    first = recipe["picture_recipe"]
    assert (first["width"], first["height"], recipe["width"]) == (32, 32, 96)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "either a PICTURE or --prompt TEXT is needed"),
        (("photo.png", "--prompt", "a cat"), "either a PICTURE or --prompt TEXT is needed"),
        (("photo.png", "--picture-model", "emoji"), "--picture-model is for a first frame"),
        (("--prompt", "a cat", "--picture-model", "gone"), "gone"),
        (("--prompt", "a (cat", "--frames", 0), "frames: has to be greater than or equal to 2"),
    ],
)
def test_what_is_wrong_with_the_first_frame_is_said_before_the_model_is_loaded(
    arguments: tuple[object, ...], told: str, undust: Run, photo: str
):
    done = undust("animate", *arguments, "--model", "absent")
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1
    assert "absent" not in done.err


def test_models_of_pictures_and_of_films_are_told_apart(
    undust: Run, video_model: Path, tiny_model: Path, photo: str
):
    done = undust("animate", photo, "--model", tiny_model)
    assert done.code == 2
    assert "not a StableVideoDiffusionPipeline" in done.err
    done = undust("generate", "a cat", "--model", video_model)
    assert done.code == 2
    assert "is a model of films; use it with `undust animate`" in done.err


def test_a_folder_that_is_no_model_is_described(undust: Run, here: Path, photo: str):
    (here / "run/model").mkdir(parents=True)
    (here / "run/checkpoints").mkdir()
    told = {"run": "give the model that the run published, run/model", "run/model": "it is empty"}
    for folder, why in told.items():
        done = undust("animate", photo, "--model", folder)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"{folder} is not a model folder (no model_index.json)" in done.err
        assert why in done.err


def test_a_missing_picture_and_a_missing_model_are_named(
    undust: Run, video_model: Path, photo: str
):
    assert "absent.png" in undust("animate", "absent.png", "--model", video_model).err
    assert "absent" in undust("animate", photo, "--model", "absent").err
