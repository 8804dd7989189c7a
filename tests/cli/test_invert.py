"""undust invert, undust likelihood, undust interpolate and undust schedules fit."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import undust as package
from undust.cli import schedules
from undust.diffusion.schedules import SCHEDULES
from undust.evaluation.metrics import psnr
from undust.formats.recipe_png import read_recipe
from undust.generation import schedule_fitting
from undust.pictures import from_image

Run = Callable[..., Any]
TOLD = (
    r"has a PSNR of (?P<psnr>[\d.]+) dB, at most (?P<largest_difference>\d+) of 255 off; the first "
    r"stage alone (?P<psnr_first_stage>[\d.]+) dB, "
    r"the inversion alone (?P<psnr_inversion>[\d.]+) dB"
)


@pytest.fixture
def picture(undust: Run, tiny_model: Path) -> Path:
    undust("generate", "a cat", "--model", tiny_model, "--steps", 2, "--seed", 1, "--out", "a.png")
    return Path("a.png")


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of a trained model."""
    path = tmp_path_factory.mktemp("hearts") / "a.png"
    [made] = package.load("emoji").generate("red heart", steps=4, seed=1)
    made.image.save(path)
    return path


def test_a_picture_goes_to_noise_and_comes_back(undust: Run, heart: Path):
    """With a trained model; one with random weights is no contraction, and has no way back."""
    options = ["--steps", 6, "--schedule", "exponential", "--iterations", 16]
    done = undust("invert", heart, "red heart", *options)
    assert (done.code, done.out) == (0, "undust-out/a.safetensors\n")
    name, *arguments = shlex.split(done.err.splitlines()[-1])  # what to type is the last line
    assert name == "undust"
    assert undust(*arguments, "--out", "back.png").code == 0
    assert read_recipe(Path("back.png"))["given_noise"] is True
    assert undust("rerun", "back.png").code == 2

    model = package.load("emoji")
    with Image.open(heart) as image:
        latents = model.encode(from_image(image, model.size)[None].float() / 127.5 - 1)
    with Image.open("back.png") as image:
        back = from_image(image, model.size)[None].float() / 127.5 - 1
    assert psnr(back, model.decode(latents).clamp(-1, 1)).item() > 40


def test_what_comes_back_is_measured_against_the_file(undust: Run, heart: Path):
    """The first stage loses most of it, whatever the inversion does."""
    size = 100  # pixels, where the model has 64
    with Image.open(heart) as image:
        given = image.resize((size, size), Image.Resampling.BICUBIC)
    given.save("b.png")
    done = undust("invert", "b.png", "red heart", "--steps", 4, "--out", "n.safetensors")
    told = re.search(TOLD, done.err)
    assert told
    found = {name: float(number) for name, number in told.groupdict().items()}
    again = shlex.split(done.err.splitlines()[-1])[1:]
    assert undust(*again, "--out", "back.png").code == 0
    with Image.open("back.png") as image:
        back = image.resize((size, size), Image.Resampling.LANCZOS)
    off = np.asarray(back).astype(float) - np.asarray(given)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / np.sqrt((off**2).mean())), abs=0.1)
    assert found["largest_difference"] == pytest.approx(np.abs(off).max(), abs=1)
    assert found["psnr"] < 50 < found["psnr_inversion"]
    assert found["psnr_first_stage"] == pytest.approx(found["psnr"], abs=1)


def test_json_has_the_numbers_that_are_told(undust: Run, tiny_model: Path, picture: Path):
    options = ["--model", tiny_model, "--steps", 2, "--out", "n.safetensors"]
    found = json.loads(undust("invert", picture, "a cat", *options, "--json").out)
    told = re.search(TOLD, undust("invert", picture, "a cat", *options).err)
    assert told
    for name, number in told.groupdict().items():
        assert f"{found[name]:.{len(number.partition('.')[2])}f}" == number


def test_more_iterations_come_nearer(undust: Run, heart: Path):
    found: list[dict[str, Any]] = []
    for iterations in (1, 20):
        options = ["--steps", 5, "--iterations", iterations, "--out", "n.safetensors", "--json"]
        found.append(json.loads(undust("invert", heart, "red heart", *options).out))
    assert found[0]["psnr_inversion"] + 20 < found[1]["psnr_inversion"]
    assert found[1]["psnr_inversion"] > 60
    assert load_file("n.safetensors")["noise"].var().item() == pytest.approx(found[1]["variance"])


@pytest.mark.parametrize(
    "tensors",
    [{}, {"noise": torch.zeros(2, 4, 8, 8)}, {"noise": torch.zeros(4, 8, 8, dtype=torch.int64)}],
)
def test_files_without_noise(undust: Run, tiny_model: Path, tensors: dict[str, torch.Tensor]):
    save_file({"other": torch.zeros(1), **tensors}, "x.safetensors")
    done = undust("generate", "a cat", "--model", tiny_model, "--noise", "x.safetensors")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "undust: x.safetensors holds no noise [C, h, w], as `undust invert` writes it\n"
    )


def test_noise_of_another_size(undust: Run, tiny_model: Path):
    save_file({"noise": torch.zeros(4, 6, 8)}, "x.safetensors")
    done = undust("generate", "a cat", "--model", tiny_model, "--noise", "x.safetensors")
    assert done.code == 2
    assert "noise: its shape is [1, 4, 6, 8]; here it has to be [1, 4, 8, 8]" in done.err


def test_likelihood_of_pictures(undust: Run, tiny_model: Path, picture: Path):
    options = ["--model", tiny_model, "--steps", 2, "--json"]
    lines = undust("likelihood", picture, picture, "--prompt", "a cat", *options).out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0] == rows[1]
    assert rows[0]["path"] == "a.png"
    other = json.loads(undust("likelihood", picture, "--prompt", "a dog", *options).out)
    assert other["bits_per_dimension"] != rows[0]["bits_per_dimension"]
    table = undust("likelihood", picture, "--prompt", "a cat", *options[:-1]).out
    assert f"{rows[0]['bits_per_dimension']:.2f}" in table
    assert "bits per dimension" in table


@pytest.mark.parametrize("command", ["invert", "likelihood"])
def test_what_is_no_picture(undust: Run, tiny_model: Path, command: str):
    Path("text.png").write_text("no picture")
    for path in ("text.png", "absent.png"):
        done = undust(command, path, "--model", tiny_model)
        assert (done.code, done.out) == (2, "")
        assert f"{path} cannot be read as a picture" in done.err


def test_interpolation_from_prompt_to_prompt(undust: Run, tiny_model: Path):
    options = ["--model", tiny_model, "--steps", 2, "--seed", 1, "--count", 4, "--out", "way"]
    done = undust("interpolate", "a cat", "a dog", "--seed-to", 2, *options)
    assert done.code == 0
    *paths, sheet = done.out.splitlines()
    towards = [read_recipe(Path(path))["toward"] for path in paths]
    assert [toward["part"] for toward in towards] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert all(toward["prompt"] == "a dog" and toward["seed"] == 2 for toward in towards)
    with Image.open(sheet) as image:
        assert image.width > 4 * 32 > image.height
    again = undust("rerun", paths[1], "--model", tiny_model, "--out", "again.png")
    assert again.code == 0
    assert Path("again.png").read_bytes() == Path(paths[1]).read_bytes()


def test_nothing_to_interpolate_to(undust: Run, tiny_model: Path):
    done = undust("interpolate", "a cat", "--model", tiny_model)
    assert done.code == 2
    assert "give a second prompt, or --seed-to N" in done.err


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures and levels, and a coarser reference, for time."""
    monkeypatch.setattr(schedules, "PICTURES", 3)
    monkeypatch.setattr(schedule_fitting, "REFERENCE", 20)
    monkeypatch.setattr(schedule_fitting, "GRID", 8)


@pytest.mark.usefixtures("few")
def test_a_fitted_schedule_can_be_used(undust: Run, tiny_model: Path):
    """The same call prints the same schedule, a list or a published one's name."""
    fit = ("schedules", "fit", tiny_model, "--steps", 3, "--calls", 24)
    done, again = undust(*fit), undust(*fit, "--json")
    assert done.code == again.code == 0
    schedule = done.out.strip()
    found = json.loads(again.out)
    assert found["schedule"] == schedule
    assert found["calls"] <= 24
    name = schedule if schedule in SCHEDULES else "fitted"
    assert found["errors"].keys() == found["deviations"].keys() == {name, *found["nearer"]}
    assert f"{name} {found['errors'][name]:.3f} ± {found['deviations'][name]:.3f}" in done.err
    if name == "fitted":
        levels = [float(level) for level in schedule.split(",")]
        assert len(levels) == 3 and levels == sorted(levels, reverse=True)
    painted = undust(
        *("generate", "a cat", "--model", tiny_model, "--schedule", schedule, "--out", "a.png"),
        *("--steps", 3),
    )
    assert painted.code == 0
    recipe = read_recipe(Path("a.png"))
    assert (recipe["schedule"], recipe["steps"]) == (schedule, 3)


@pytest.mark.usefixtures("few")
def test_without_a_search_a_published_schedule_is_named(
    undust: Run, tiny_model: Path, pictures: Path
):
    options = ["--steps", 2, "--calls", 0, "--data", pictures]
    done = undust("schedules", "fit", tiny_model, *options)
    assert done.out.strip() in SCHEDULES
    assert f"no schedule better than the published {done.out.strip()} was found" in done.err


@pytest.mark.usefixtures("few")
def test_what_cannot_be_fitted(undust: Run, tiny_model: Path, here: Path):
    done = undust("schedules", "fit", tiny_model, "--steps", 2, "--sampler", "ddpm")
    assert done.code == 2
    assert "only samplers without noise" in done.err
    (here / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(here / "empty/a.png")
    done = undust("schedules", "fit", tiny_model, "--steps", 2, "--data", "empty")
    assert done.code == 2
    assert "empty has too few captions" in done.err
