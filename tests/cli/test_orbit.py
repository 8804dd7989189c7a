"""undust orbit, as a person calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from undust.formats.film import read_film_recipe

Run = Callable[..., Any]
QUICK = ("--frames", 3, "--steps", 2, "--size", "32x24", "--seed", 7)


DEPTH = ("--depth", "depth.npy")
END = ("--last", "end.png", "--last-depth", "depth.npy")


@pytest.fixture
def photo() -> str:
    Image.radial_gradient("L").convert("RGB").save("photo.png")
    Image.linear_gradient("L").save("near.png")
    np.save("depth.npy", np.full((256, 256), 3.0))
    Path("wide.csv").write_text("1,0,0,0\n1,0,0,0\n")
    Path("high.csv").write_text("1,0,0\n1,0,0\n1,0,0\n")
    return "photo.png"


def test_an_orbit_can_be_made_again(undust: Run, video_model: Path, photo: str):
    options = ("--depth", "near.png", "--disparity", "--degrees", -10, "--form", "blend")
    done = undust("orbit", photo, "--model", video_model, *QUICK, *options, "--out", "a.webp")
    assert (done.code, done.out) == (0, "a.webp\n")
    known = read_film_recipe(Path("a.webp"))["known"]
    asked = {"numbers": "disparity", "degrees": -10, "form": "blend", "distance": 70}
    assert {name: known[name] for name in asked} == asked
    assert undust("rerun", "a.webp", "--out", "b.webp").code == 0
    assert Path("a.webp").read_bytes() == Path("b.webp").read_bytes()


def test_an_orbit_between_two_pictures_can_be_made_again(
    undust: Run, video_model: Path, photo: str
):
    Image.linear_gradient("L").convert("RGB").save("end.png")
    options = ("--depth", "depth.npy", "--last", "end.png", "--last-depth", "depth.npy")
    done = undust("orbit", photo, "--model", video_model, *QUICK, *options, "--out", "a.webp")
    assert (done.code, done.out) == (0, "a.webp\n")
    known = read_film_recipe(Path("a.webp"))["known"]
    assert (known["last"]["path"], known["last_depth"]["path"]) == ("end.png", "depth.npy")
    assert undust("rerun", "a.webp", "--out", "b.webp").code == 0
    assert Path("a.webp").read_bytes() == Path("b.webp").read_bytes()
    Image.new("RGB", (256, 256)).save("end.png")
    assert "end.png is not the picture any more" in undust("rerun", "a.webp").err


def test_an_orbit_by_posterior_sampling_can_be_made_again(
    undust: Run, video_model: Path, photo: str
):
    options = (*DEPTH, "--form", "posterior")
    done = undust("orbit", photo, "--model", video_model, *QUICK, *options, "--out", "a.webp")
    assert (done.code, done.out) == (0, "a.webp\n")
    assert read_film_recipe(Path("a.webp"))["known"]["form"] == "posterior"
    assert undust("rerun", "a.webp", "--out", "b.webp").code == 0
    assert Path("a.webp").read_bytes() == Path("b.webp").read_bytes()


def test_ones_own_table_is_used(undust: Run, video_model: Path, photo: str):
    """One of zeros leaves the film as it is without views."""
    Path("zeros.csv").write_text("0,0,0\n0,0,0\n")
    options = (*DEPTH, "--table", "zeros.csv", "--weight-clamp", 0)
    done = undust("orbit", photo, "--model", video_model, *QUICK, *options, "--out", "a")
    assert done.code == 0
    assert undust("animate", photo, "--model", video_model, *QUICK, "--out", "b").code == 0
    for name in ("frame-0001.png", "frame-0002.png"):
        ours, plain = (np.array(Image.open(Path(folder, name))) for folder in "ab")
        assert np.array_equal(ours, plain)
    again = undust("rerun", "a/frame-0000.png", "--out", "c")
    assert again.code == 0
    Path("zeros.csv").write_text("0,0,1\n0,0,0\n")
    assert "zeros.csv is not any more what it was" in undust("rerun", "a/frame-0000.png").err


def test_bad_masks_are_found_before_the_model_is_loaded(undust: Run, photo: str):
    """And nothing is said of a file that is not replaced after all."""
    Path("a.webp").write_bytes(b"old")
    views = Path("views")
    views.mkdir()
    for frame in range(3):
        Image.new("RGB", (32, 24)).save(views / f"view-{frame:04}.png")
        np.save(views / f"mask-{frame:04}.npy", np.ones((24, 32)))
    given = ("orbit", photo, "--model", "gone", *QUICK, "--views", views, "--out", "a.webp")
    assert undust(*given).err == "undust: unknown model 'gone'; known: emoji\n"
    for mask, told in (
        (np.full((24, 32), 2.0), "a mask is 1 where the view is known, and else 0"),
        (np.ones((24, 30)), "has 30x24, and views/view-0002.png 32x24"),
    ):
        np.save(views / "mask-0002.npy", mask)
        done = undust(*given)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "views/mask-0002.npy" in done.err and told in done.err
    assert Path("a.webp").read_bytes() == b"old"


def test_a_film_that_is_replaced_is_told(undust: Run, video_model: Path, photo: str):
    Path("a.webp").write_bytes(b"old")
    done = undust("animate", photo, "--model", video_model, *QUICK, "--out", "a.webp")
    assert done.code == 0
    assert "undust: a.webp exists and will be replaced\n" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((*DEPTH, "--table", "absent.npy"), "absent.npy"),
        ((*DEPTH, "--table", "wide.csv"), "the number of frames (columns) is off"),
        ((*DEPTH, "--table", "high.csv"), "the number of noise levels (rows) is off"),
        ((), "either --depth MAP or --views DIR is needed"),
        (("--depth", "depth.npy", "--views", "."), "either --depth MAP or --views DIR is needed"),
        (("--views", ".", "--degrees", 3), "are for a depth map (--depth)"),
        (("--views", "absent"), "absent"),
        (("--views", "."), ". has no view-0000; each of 3 frames"),
        (("--depth", "absent.npy"), "absent.npy"),
        (("--depth", "depth.npy", "--degrees", "nan"), "degrees"),
        (
            ("--depth", "depth.npy", "--form", "x"),
            "undust: --form: 'x' is not one of 'quantile', 'blend', 'posterior'\n",
        ),
        ((*DEPTH, "--last", "end.png"), "--last PICTURE and --last-depth MAP are needed together"),
        ((*DEPTH, "--last-depth", "depth.npy"), "and --last-depth MAP are needed together"),
        ((*DEPTH, "--last", "absent.png", "--last-depth", "depth.npy"), "absent.png"),
        ((*DEPTH, "--last", "end.png", "--last-depth", "absent.npy"), "absent.npy"),
        ((*DEPTH, *END, "--frames", 2), "frames: 2 are the two pictures alone; at least 3"),
        (("--views", ".", *END), "--last and --last-depth are for a depth map (--depth)"),
        ((*DEPTH, "--last", "small.png", "--last-depth", "depth.npy"), "has 32x24 pixels, and the"),
        ((*DEPTH, "--last", "end.png", "--last-depth", "small.npy"), "of another size: 32x24"),
        (("--depth", "depth.npy", "--frames", 1), "frames: has to be greater than or equal to 2"),
    ],
)
def test_what_is_wrong_with_an_orbit_is_said_in_one_line(
    options: tuple[object, ...], told: str, undust: Run, video_model: Path, photo: str
):
    Image.new("RGB", (256, 256)).save("end.png")
    Image.new("RGB", (32, 24)).save("small.png")
    np.save("small.npy", np.full((24, 32), 3.0))
    for model in (video_model, "gone"):  # without the model too
        done = undust("orbit", photo, "--model", model, *QUICK, *options)
        assert done.code == 2
        assert told in done.err
        assert done.err.count("\n") == 1
