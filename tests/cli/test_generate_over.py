"""undust generate over a picture, and with what changes the model: said, kept, refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from undust.formats.recipe_png import read_recipe, read_texts
from undust.formats.safetensors_file import save

Run = Callable[..., Any]
Paint = Callable[..., dict[str, Any]]


@pytest.fixture
def files(here: Path) -> Path:
    """A picture, a mask and weights that fit the tiny model, in the folder that commands run in."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 30, 3), dtype=np.uint8)).save(here / "a.png")
    mask = Image.new("L", (30, 28), 0)
    mask.paste(255, (4, 4, 20, 20))
    mask.save(here / "mask.png")
    draw = torch.Generator().manual_seed(0)
    save(here / "toy.safetensors", {"emb_params": torch.randn(2, 16, generator=draw)})
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    low_rank = {
        f"unet.{place}.lora_A.weight": torch.randn(2, 16, generator=draw),
        f"unet.{place}.lora_B.weight": 9 * torch.randn(16, 2, generator=draw),
    }
    save(here / "style.safetensors", low_rank)
    return here


@pytest.fixture
def controlnet(files: Path, tiny_model: Path) -> Path:
    """The folder of a ControlNet with random weights, for the tiny model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_model / "unet")
        network = diffusers.ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 16, 16)
        )
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(files / "control")
    return files / "control"


@pytest.fixture
def painted(undust: Run, files: Path, tiny_model: Path) -> Paint:
    """The recipe of a picture painted with some options; that it is made again is tried too."""

    def paint(*options: object, rerun: bool = True) -> dict[str, Any]:
        common = ("--model", tiny_model, "--steps", 4, "--seed", 1)
        done = undust("generate", "a cat", *common, *options, "--out", "new.png")
        assert (done.code, done.out) == (0, "new.png\n"), done.err
        assert done.err.splitlines()[-1].startswith("seed 1, ")
        recipe = read_recipe(Path("new.png"))
        if rerun:
            again = undust("rerun", "new.png", "--model", tiny_model, "--out", "again.png")
            assert again.code == 0, again.err
            assert Path("again.png").read_bytes() == Path("new.png").read_bytes()
        return recipe

    return paint


def test_other_programs_are_told_how_it_was_made(painted: Paint):
    painted("--init", "a.png", "--lora", "style.safetensors:0.8", "--upscale", "1.5@0.5")
    text = read_texts(Path("new.png"))["parameters"]
    assert text.startswith("a cat <lora:style:0.8>\nSteps: 4, ")
    for told in (
        "Size: 30x28",  # not that of the canvas, 32x28
        "Denoising strength: 0.75",
        "Hires upscale: 1.5",
        'Lora hashes: "style: ',
    ):
        assert f", {told}" in text


def test_a_picture_is_begun_from(painted: Paint):
    recipe = painted("--init", "a.png", "--strength", 0.5)
    assert recipe["init"]["path"] == "a.png"
    assert len(recipe["init"]["hash"]) == 16
    assert (recipe["strength"], recipe["width"], recipe["height"]) == (0.5, 32, 28)
    with Image.open("new.png") as image:
        assert image.size == (30, 28)


def test_steps_are_counted_as_they_are_taken(undust: Run, files: Path, tiny_model: Path):
    common = ("generate", "a cat", "--model", tiny_model, "--steps", 10)
    for options, steps in [
        (("--init", "a.png"), 7),
        (("--init", "a.png", "--strength", 0.3), 3),
        (("--init", "a.png", "--mask", "mask.png"), 10),
        (("--upscale", "2@0.3"), 13),
    ]:
        done = undust(*common, *options)
        assert f"{steps}/{steps} steps: a cat\n" in done.err


def test_what_is_not_masked_stays(painted: Paint):
    recipe = painted("--init", "a.png", "--mask", "mask.png")
    assert recipe["mask"]["path"] == "mask.png"
    with Image.open("new.png") as new, Image.open("a.png") as old, Image.open("mask.png") as mask:
        kept = mask.point([255] + [0] * 255)  # black where it is painted anew
        black = Image.new("RGB", new.size)
        before, after = (Image.composite(one, black, kept) for one in (old, new.convert("RGB")))
        assert before.tobytes() == after.tobytes()
        assert old.tobytes() != new.convert("RGB").tobytes()


def test_a_picture_is_extended(painted: Paint):
    assert painted("--init", "a.png", "--extend", "3,0,0,5")["extend"] == [3, 0, 0, 5]
    with Image.open("new.png") as new, Image.open("a.png") as old:
        assert new.size == (33, 33)
        assert new.convert("RGB").crop((3, 0, 33, 28)).tobytes() == old.tobytes()


def test_a_second_pass(painted: Paint):
    assert painted("--upscale", 2)["upscale"] == {"factor": 2.0, "strength": 0.3}
    with Image.open("new.png") as image:
        assert image.size == (64, 64)


def test_low_rank_changes(painted: Paint):
    plain = painted()
    bytes_ = Path("new.png").read_bytes()
    assert painted("--lora", "style.safetensors:0")["loras"][0]["weight"] == 0
    with Image.open("new.png") as image:
        unchanged = image.tobytes()
    loras = painted("--lora", "style.safetensors:2", "--lora", "style.safetensors")["loras"]
    assert [(lora["path"], lora["weight"]) for lora in loras] == [
        ("style.safetensors", 2.0),
        ("style.safetensors", 1.0),
    ]
    with Image.open("new.png") as image:
        assert image.tobytes() != unchanged
    assert "loras" not in plain
    painted()
    assert Path("new.png").read_bytes() == bytes_


def test_learnt_words(undust: Run, painted: Paint, tiny_model: Path):
    embeddings = painted("--embedding", "toy.safetensors=cat")["embeddings"]
    assert [(each["path"], each["word"]) for each in embeddings] == [("toy.safetensors", "cat")]
    with Image.open("new.png") as image:
        learnt = image.tobytes()
    painted()
    with Image.open("new.png") as image:
        assert image.tobytes() != learnt


def test_controls(painted: Paint, controlnet: Path):
    written = "control=canny:a.png@0.7:0-0.5"
    (control,) = painted("--control", written)["controls"]
    assert len(control.pop("hash")) == len(control["picture"].pop("hash")) == 16
    assert control == {
        "path": "control",
        "picture": {"path": "a.png"},
        "edges": True,
        "weight": 0.7,
        "start": 0.0,
        "end": 0.5,
    }


def test_a_refiner_takes_over(painted: Paint, tiny_model: Path):
    refiner = painted("--refiner", f"{tiny_model}@0.5")["refiner"]
    assert (refiner["model"], refiner["after"]) == (str(tiny_model), 0.5)
    assert refiner["model_hash"]


def test_layers_are_left_out(painted: Paint):
    assert painted("--clip-skip", 1)["clip_skip"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--strength", 0.5), "strength: it needs a picture to start from (init)"),
        (("--mask", "mask.png"), "mask: it needs a picture"),
        (("--extend", "1,1,1,1"), "extend: it needs a picture"),
        (("--noise-level", 20), "noise_level: it needs a picture"),
        (("--init", "a.png", "--noise-level", 20), "is no model that makes pictures larger"),
        (("--init", "none.png"), "none.png cannot be read as a picture"),
        (("--init", "toy.safetensors"), "toy.safetensors cannot be read as a picture"),
        (("--init", "a.png", "--strength", 0), "strength: has to be greater than 0"),
        (("--init", "a.png", "--strength", "nan"), "strength: "),
        (("--init", "a.png", "--mask", "none.png"), "none.png cannot be read"),
        (("--init", "mask.png", "--mask", "small.png"), "mask: it has 8x8 pixels; the picture"),
        (("--init", "a.png", "--extend", "1,2,3"), "LEFT,TOP,RIGHT,BOTTOM"),
        (("--init", "a.png", "--extend", "1,2,3,4", "--size", "64x64"), "leave it out"),
        (("--upscale", "2x"), "is not FACTOR or FACTOR@STRENGTH"),
        (("--upscale", "0.5"), "upscale: factor: has to be greater than 1"),
        (("--init", "a.png", "--mask", "mask.png", "--upscale", 2), "upscale: the second pass"),
        (("--lora", "none.safetensors"), "none.safetensors does not exist"),
        (("--lora", "none.safetensors:0,8"), "does not exist; expected PATH or PATH:WEIGHT"),
        (("--seed", "-1"), "leave it out for a random one"),
        (("--lora", "a.png"), "a.png is not a safetensors file"),
        (("--lora", "toy.safetensors"), "toy.safetensors"),
        (("--lora", "style.safetensors:1000"), "lora: weight: has to be less than"),
        (("--embedding", "style.safetensors=cat"), "style.safetensors is not a textual inversion"),
        (("--embedding", "none=x"), "none does not exist"),
        (("--control", "toy.safetensors"), "is not PATH=PICTURE"),
        (("--control", "none=a.png"), "none does not exist"),
        (("--control", "toy.safetensors=none.png"), "none.png cannot be read"),
        (("--control", "toy.safetensors=a.png"), "toy.safetensors"),
        (("--control", "toy.safetensors=a.png:0.5-0.5"), "is no interval"),
        (("--clip-skip", 0), "clip_skip: has to be greater than or equal to 1"),
        (("--clip-skip", 9), "clip skip: 9 is not 0 to 1"),
        (("--deep-cache", 0), "deep_cache: has to be greater than or equal to 1, not 0"),
        (("--token-merging", 0.8), "token_merging: has to be less than or equal to 0.75, not 0.8"),
        (("--guide", "adaptive:threshold=2"), "guide adaptive: threshold: has to be less than"),
        (("--refiner", "none"), "unknown model 'none'"),
        (("--refiner", "none@2"), "refiner: after: has to be less than"),
        (("--framing", "crop=1"), "framing: 'crop=1' is not original=WxH"),
    ],
)
def test_wishes_that_cannot_be(
    undust: Run, files: Path, tiny_model: Path, options: tuple[object, ...], said: str
):
    Image.new("L", (8, 8), 255).save("small.png")
    done = undust("generate", "a cat", "--model", tiny_model, "--steps", 2, *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("undust: ")
    assert done.err.count("\n") == 1
    assert not Path("undust-out").exists()


@pytest.mark.parametrize("name", ["a.png", "mask.png", "toy.safetensors", "style.safetensors"])
def test_files_that_are_gone_when_it_is_made_again(
    undust: Run, painted: Paint, tiny_model: Path, name: str
):
    painted(
        *("--init", "a.png", "--mask", "mask.png", "--embedding", "toy.safetensors=cat"),
        *("--lora", "style.safetensors"),
        rerun=False,
    )
    Path(name).unlink()
    done = undust("rerun", "new.png", "--model", tiny_model, "--out", "o.png")
    assert (done.code, done.out) == (2, "")
    assert name in done.err
    assert done.err.count("\n") == 1
    assert not Path("o.png").exists()


def test_the_models_of_a_picture_are_found_beside_it(undust: Run, here: Path, tiny_model: Path):
    """Model, refiner and first stage, moved together with the picture."""
    for name in ("base", "refiner"):
        shutil.copytree(tiny_model, here / name)
    shutil.copytree(tiny_model / "vae", here / "other")
    files = ["--model", "base", "--refiner", "refiner@0.5", "--vae", "other"]
    assert undust("generate", "a cat", *files, "--steps", 2, "--out", "a.png").code == 0
    (here / "moved").mkdir()
    for name in ("a.png", "base", "refiner", "other"):
        (here / name).rename(here / "moved" / name)
    assert undust("rerun", "moved/a.png", "--out", "b.png").code == 0
    assert (here / "b.png").read_bytes() == (here / "moved/a.png").read_bytes()
    assert ", VAE: other" in Image.open(here / "b.png").info["parameters"]
    shutil.rmtree(here / "moved/other")
    done = undust("rerun", "moved/a.png", "--out", "c.png")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "other does not exist" in done.err


def test_what_a_picture_was_made_from_is_found_beside_it(undust: Run, here: Path, tiny_model: Path):
    """The picture and what it was begun from, moved together."""
    Image.new("RGB", (32, 32), "red").save(here / "start.png")
    asked = ["a cat", "--model", tiny_model, "--init", "start.png", "--steps", 2, "--out", "a.png"]
    assert undust("generate", *asked).code == 0
    (here / "moved").mkdir()
    for name in ("start.png", "a.png"):
        (here / name).rename(here / "moved" / name)
    done = undust("rerun", "moved/a.png", "--out", "b.png")
    assert done.code == 0
    assert (here / "b.png").read_bytes() == (here / "moved/a.png").read_bytes()
    Image.new("RGB", (32, 32), "blue").save(here / "moved/start.png")
    done = undust("rerun", "moved/a.png", "--model", tiny_model, "--out", "c.png")
    assert done.code == 2
    assert "is not the picture any more that it was" in done.err
