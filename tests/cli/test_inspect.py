"""undust inspect, and the tables of what there is."""

from __future__ import annotations

import hashlib
import json
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.formats.film import write_film
from undust.formats.recipe_png import read_recipe, write_picture

Run = Callable[..., Any]


def parameters(path: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(path).values())


def test_a_picture(undust: Run, tiny_model: Path):
    undust("generate", "a cat", "--model", tiny_model, "--steps", 1, "--seed", 9, "--out", "c.png")
    facts = json.loads(undust("inspect", "c.png", "--json").out)
    assert (facts["kind"], facts["pixels"]) == ("picture", "32x32")
    assert (facts["recipe"]["prompt"], facts["recipe"]["seed"]) == ("a cat", 9)
    shown = undust("inspect", "c.png").out
    assert "a cat" in shown
    assert "deis" in shown


@pytest.mark.parametrize("name", ["film.mp4", "film.webp", "film.gif", "frames"])
def test_a_film(undust: Run, tmp_path: Path, name: str):
    if name == "film.mp4":
        pytest.importorskip("av")
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    write_film(tmp_path / name, frames, 7, {"prompt": "a cat", "fps": 7})
    facts = json.loads(undust("inspect", tmp_path / name, "--json").out)
    assert facts["recipe"] == {"prompt": "a cat", "fps": 7}
    assert facts["path"] == str(tmp_path / name)
    if name != "film.mp4":
        assert facts["pixels"] == "16x8"
    if name == "frames":
        assert (facts["kind"], facts["frames"]) == ("film", 2)
    assert "a cat" in undust("inspect", tmp_path / name).out


PARAMETERS = """-cat <lora:style:0.6>
Negative prompt: lowres, bad
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 42, Size: 832x1216, Model: some, \
Denoising strength: 0.5, Clip skip: 2, Hires upscale: 2, Refiner: other [01], Version: v1.5"""


def with_parameters(path: Path, text: str) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", text)
    Image.new("RGB", (8, 4)).save(path, pnginfo=texts)


def test_a_picture_of_another_program(undust: Run, here: Path):
    with_parameters(here / "a.png", PARAMETERS)
    facts = json.loads(undust("inspect", "a.png", "--json").out)
    assert (facts["kind"], facts["pixels"]) == ("picture", "8x4")
    assert facts["A1111"]["prompt"] == "-cat"
    assert facts["other settings"] == {"Version": "v1.5"}
    shown = undust("inspect", "a.png")
    assert shown.code == 0
    assert "lowres, bad" in shown.out
    assert shown.err.splitlines()[1] == (
        "undust generate --negative 'lowres, bad' --steps 20 --sampler dpmpp-2m --schedule karras "
        "--guidance 6.5 --seed 42 --clip-skip 1 --size 832x1216 --upscale 2.0@0.5 "
        "--lora style.safetensors:0.6 --refiner other.safetensors@0.8 --model some.safetensors "
        "-- -cat"
    )


def test_the_command_that_is_shown_can_be_run(undust: Run, here: Path):
    with_parameters(
        here / "a.png",
        "a 'cat'\nSteps: 2, Sampler: Euler a, Schedule type: Automatic, CFG scale: 4, Seed: 3, "
        "Size: 64x64, Model: emoji",
    )
    command = shlex.split(undust("inspect", "a.png").err.splitlines()[1])
    assert undust(*command[1:], "--out", "b.png").code == 0
    recipe = read_recipe(here / "b.png")
    assert [recipe[name] for name in ("prompt", "sampler")] == ["a 'cat'", "euler-ancestral"]


def test_a_picture_begun_from_has_its_own_size(undust: Run, here: Path):
    with_parameters(here / "a.png", "a\nSteps: 9, Seed: 1, Size: 67x45, Denoising strength: 0.4")
    command = undust("inspect", "a.png").err.splitlines()[1]
    assert "--init PICTURE --strength 0.4" in command
    assert "--size" not in command


def test_what_cannot_be_read_is_noted(undust: Run, here: Path):
    with_parameters(here / "a.png", "a cat\nSteps: many, Seed: 1, CFG scale: 7")
    facts = json.loads(undust("inspect", "a.png", "--json").out)
    assert facts["notes"] == ["parameters: Steps has to be a number, not 'many'"]
    assert facts["command"] == (
        "undust generate 'a cat' --guidance 7.0 --seed 1 --model MODEL.safetensors"
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_any_picture(undust: Run, here: Path, kind: str):
    Image.new("RGB", (7, 5)).save(here / "a", kind)
    facts = json.loads(undust("inspect", "a", "--json").out)
    assert facts == {"path": "a", "kind": "picture", "format": kind, "pixels": "7x5"}


def test_pictures_that_cannot_be_read_are_named(undust: Run, here: Path):
    Image.new("RGB", (7, 5)).save(here / "icon", "EPS")
    Image.new("RGB", (7, 5)).save(here / "cut", "JPEG")
    (here / "cut").write_bytes((here / "cut").read_bytes()[:200])
    for name, said in {"icon": "format EPS", "cut": "Truncated"}.items():
        done = undust("inspect", name)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert said in done.err


def test_a_model(undust: Run, tiny_model: Path):
    facts = json.loads(undust("inspect", tiny_model, "--json").out)
    undust("generate", "a cat", "--model", tiny_model, "--steps", 1, "--out", "c.png")
    recipe = json.loads(undust("inspect", "c.png", "--json").out)["recipe"]
    assert facts["hash"] == recipe["model_hash"]
    assert facts["pixels"] == "32x32"
    assert facts["latent"] == "4x8x8"
    assert facts["prediction"] == "epsilon"
    assert facts["precision"] == "float32"
    assert facts["process"].startswith("scaled_linear, σ 0.0292 … 14.6")
    counts = {part["part"]: part["parameters"] for part in facts["parts"]}
    assert counts == {
        "text_encoder": parameters(tiny_model / "text_encoder/model.safetensors"),
        "unet": parameters(tiny_model / "unet/diffusion_pytorch_model.safetensors"),
        "vae": parameters(tiny_model / "vae/diffusion_pytorch_model.safetensors"),
    }
    assert facts["parameters"] == sum(counts.values())
    shown = undust("inspect", tiny_model).out
    assert "UNet2DConditionModel" in shown
    assert facts["hash"] in shown


def test_a_part_and_its_weights(undust: Run, tiny_model: Path):
    weights = tiny_model / "vae/diffusion_pytorch_model.safetensors"
    part = json.loads(undust("inspect", tiny_model / "vae", "--json").out)
    assert part["class"] == "AutoencoderKL"
    assert part["configuration"]["block_out_channels"] == [8, 16, 16]
    facts = json.loads(undust("inspect", weights, "--json").out)
    assert facts["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert facts["sha256"].startswith(part["hash"])
    assert facts["tensors"] == len(load_file(weights))
    assert facts["parameters"] == part["parameters"] == parameters(weights)
    assert facts["metadata"] == {"format": "pt"}
    assert undust("inspect", weights).code == undust("inspect", tiny_model / "vae").code == 0


def test_precisions_are_named_by_how_much_they_hold(undust: Run, here: Path):
    tensors = {"a": torch.zeros(9, dtype=torch.float16), "b": torch.zeros(4)}
    save_file(tensors, here / "mixed.safetensors")
    facts = json.loads(undust("inspect", "mixed.safetensors", "--json").out)
    assert (facts["precision"], facts["parameters"]) == ("float16, float32", 13)


def test_a_data_set_is_sent_on(undust: Run, pictures: Path):
    done = undust("inspect", pictures)
    assert done.code == 2
    assert "undust data check" in done.err


def test_one_of_several_runs_is_named(undust: Run, here: Path):
    """As those of a folder of pictures."""
    (here / "all/one/checkpoints").mkdir(parents=True)
    done = undust("inspect", "all")
    assert done.code == 2
    assert "inspect one of all/one" in done.err


@pytest.mark.parametrize(("command", "known"), [("samplers", SAMPLERS), ("schedules", SCHEDULES)])
def test_tables_name_everything(undust: Run, command: str, known: dict[str, object]):
    done = undust(command)
    assert done.code == 0
    first_words = [line.split()[0] for line in done.out.splitlines()[2:] if line.strip()]
    assert first_words == sorted(known)


def test_models(undust: Run):
    assert undust("models").code == 0


def test_a_data_set_is_counted(undust: Run, pictures: Path):
    done = undust("data", "check", pictures)
    assert done.code == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.strip()}
    assert lines["pictures"] == ["8"]
    assert lines["sizes"] == ["16x16", "(8)"]
    assert lines["text"][:2] == ["8", "6–6"]


def test_of_what_is_very_long_the_beginning_is_shown(undust: Run, here: Path):
    save_file({"a": torch.zeros(1)}, here / "a.safetensors", {"notes": "x" * 10**6})
    shown = undust("inspect", "a.safetensors")
    assert shown.code == 0
    assert 10_000 < len(shown.out) < 20_000
    facts = json.loads(undust("inspect", "a.safetensors", "--json").out)
    assert facts["metadata"]["notes"] == "x" * 10**6


def test_names_with_half_of_a_letter(undust: Run, here: Path):
    head = rb'{"__metadata__":{"a\ud800":"b\udfff"}}'
    (here / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    shown = undust("inspect", "a.safetensors")
    assert (shown.code, shown.err) == (0, "")
    assert "a�" in shown.out
    facts = json.loads(undust("inspect", "a.safetensors", "--json").out)
    assert facts["metadata"] == {"a\ud800": "b\udfff"}


def test_a_picture_whose_head_is_damaged(undust: Run, here: Path):
    write_picture(here / "a.png", Image.new("RGB", (4, 4)), {"prompt": "a cat"})
    content = (here / "a.png").read_bytes()
    head = b"IHDR" + bytes(5)
    chunk = (5).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    (here / "a.png").write_bytes(content[:8] + chunk + content[33:])
    refused = undust("inspect", "a.png")
    assert refused.code == 2
    assert refused.err.startswith("undust: a.png ")
    assert refused.err.count("\n") == 1
