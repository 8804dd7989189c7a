"""undust convert: models both ways, on the command line."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from films import write_film_model, write_single_file
from undust import load
from undust.formats.original.checkpoint import to_original
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from variants import build

Run = Callable[..., Any]
CONFIG = AutoencoderConfig(block_out_channels=(32, 64))


@pytest.fixture
def first_stage(here: Path) -> dict[str, torch.Tensor]:
    """vae.safetensors, in half precision: its tensors."""
    own = {name: t.half() for name, t in Autoencoder(CONFIG).state_dict().items()}
    tensors = {key: t.contiguous() for key, t in to_original(None, {"vae": (CONFIG, own)}).items()}
    save_file(tensors, here / "vae.safetensors")
    return tensors


def test_there_and_back(undust: Run, here: Path, first_stage: dict[str, torch.Tensor]):
    there = undust("convert", "vae.safetensors", "vae", "--to", "folder")
    assert (there.code, there.out) == (0, "vae\n")
    assert "MB: writing vae" in there.err
    assert "does not store the scale of its latents" in there.err
    back = undust("convert", "vae", "back.safetensors", "--to", "single-file", "--dtype", "fp32")
    assert back.code == 0
    found = load_file(here / "back.safetensors")
    assert found.keys() == first_stage.keys()
    assert all(torch.equal(found[key], tensor.float()) for key, tensor in first_stage.items())


def test_a_whole_model_in_another_precision(undust: Run, here: Path, tiny_model: Path):
    assert undust("convert", tiny_model, "half", "--to", "folder", "--dtype", "bf16").code == 0
    facts = json.loads(undust("inspect", "half", "--json").out)
    assert (facts["kind"], facts["precision"]) == ("model", "bfloat16")


def test_a_model_of_films_becomes_a_folder(undust: Run, here: Path):
    folder = write_film_model(here / "films")
    write_single_file(here / "films.safetensors", folder)
    for source, target in (("films.safetensors", "whole"), (folder, "half")):
        done = undust("convert", source, target, "--to", "folder", "--dtype", "fp16")
        assert (done.code, done.out) == (0, f"{target}\n")
    pipe = diffusers.StableVideoDiffusionPipeline.from_pretrained(here / "half")
    assert {each.dtype for each in pipe.unet.parameters()} == {torch.float32}
    first = load_file(here / "whole/unet/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in first.values()} == {torch.float16}
    second = load_file(here / "half/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    back = undust("convert", folder, "back.safetensors", "--to", "single-file")
    assert back.code == 2
    assert "written as a folder alone" in back.err


def test_what_a_model_predicts_is_told(undust: Run, here: Path):
    build("sd1").save(here / "sd1")
    asked = ("--to", "folder", "--prediction", "v")
    assert undust("convert", "sd1", "v", *asked).code == 0
    scheduler = diffusers.DDIMScheduler.from_pretrained(here / "v", subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert load(here / "v").prediction == "v_prediction"


def test_a_pickle(undust: Run, here: Path, first_stage: dict[str, torch.Tensor]):
    torch.save({"state_dict": first_stage, "epoch": 1}, here / "vae.ckpt")
    done = undust("convert", "vae.ckpt", "new.safetensors", "--to", "single-file")
    assert done.code == 0
    assert "in a separate process" in done.err
    assert "left out: epoch" in done.err
    found = load_file(here / "new.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in first_stage.items())


def test_folders_are_made_and_what_is_replaced_is_said(
    undust: Run, here: Path, first_stage: dict[str, torch.Tensor]
):
    for layout, target in (("folder", "a folder/b/vae"), ("single-file", "c/vae.safetensors")):
        first = undust("convert", "vae.safetensors", target, "--to", layout)
        assert (first.code, first.out) == (0, f"{target}\n")
        again = undust("convert", "vae.safetensors", target, "--to", layout)
        assert (again.code, again.out) == (0, f"{target}\n")
        line = "replaced a first stage"
        assert line in again.err.splitlines()
        assert line not in first.err
    assert sorted(path.name for path in here.iterdir()) == ["a folder", "c", "vae.safetensors"]


@pytest.mark.usefixtures("quick_reader")
def test_what_was_pickled_is_painted_with(undust: Run, here: Path):
    build("sd1").save("model")
    Image.new("RGB", (64, 64), "grey").save("grey.png")
    width, places = 32, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    factors = {"lora_down": torch.ones(2, width), "lora_up": torch.ones(64, 2)}
    flat = f"lora_unet_{places.replace('.', '_')}"
    torch.save({f"{flat}.{name}.weight": t for name, t in factors.items()}, "lora.pt")
    torch.save({"string_to_param": {"*": torch.ones(2, width)}, "name": "dust"}, "dust.pt")
    control = diffusers.ControlNetModel.from_unet(
        diffusers.UNet2DConditionModel.from_pretrained("model", subfolder="unet"),
        conditioning_embedding_out_channels=(8, 16, 16),
    )
    with torch.no_grad():
        control.controlnet_mid_block.bias.fill_(1)
    control.save_pretrained("net", safe_serialization=False)
    for made, source, layout in (
        ("lora.safetensors", "lora.pt", "single-file"),
        ("dust.safetensors", "dust.pt", "single-file"),
        ("control", "net", "folder"),
    ):
        assert undust("convert", source, made, "--to", layout).out == f"{made}\n"
    plain = ("generate", "dust", "--model", "model", "--seed", 1, "--steps", 1, "--size", "64x64")
    pictures = set[bytes]()
    for options in (
        (),
        ("--lora", "lora.safetensors"),
        ("--embedding", "dust.safetensors"),
        ("--control", "control=grey.png"),
    ):
        done = undust(*plain, *options, "--out", "a.png")
        assert (done.code, done.out) == (0, "a.png\n"), done.err
        pictures.add(Image.open("a.png").tobytes())
    assert len(pictures) == 4


def test_a_pickle_that_would_run_something(undust: Run, here: Path):
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {here / 'mark'}",)

    (here / "evil.ckpt").write_bytes(pickle.dumps(Command(), 2))
    done = undust("convert", "evil.ckpt", "new.safetensors", "--to", "single-file")
    assert (done.code, done.out) == (2, "")
    assert "it uses posix.system" in done.err.splitlines()[-1]
    assert [path.name for path in here.iterdir()] == ["evil.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("absent", "b", "--to", "folder"), "absent does not exist"),
        (("vae.safetensors", "b"), "--to"),
        (("vae.safetensors", "b", "--to", "zip"), "zip"),
        (("vae.safetensors", "b", "--to", "folder", "--dtype", "fp8"), "fp8"),
        (("vae.safetensors", "b.ckpt", "--to", "single-file"), "has to end in .safetensors"),
        (("vae.safetensors", "mine", "--to", "folder"), "it is not replaced"),
        (("vae.safetensors", "b", "--to", "folder", "--ema"), "no moving averages"),
        (("mine", "b", "--to", "folder"), "is not a model folder"),
        (("vae.safetensors", "mine/a.txt/b", "--to", "folder"), "a.txt is not a folder"),
        (("word.safetensors", "b", "--to", "folder"), "is always a single file"),
        (("word.safetensors", "vae.safetensors", "--to", "single-file"), "is a first stage, not"),
        (
            ("word.safetensors", "b.safetensors", "--to", "single-file", "--lora", "a"),
            "--lora needs a whole model; this is a textual inversion",
        ),
        (
            ("vae.safetensors", "b", "--to", "folder", "--prediction", "v"),
            "--prediction needs a whole model; this is a first stage",
        ),
    ],
)
def test_wrong_ways_are_one_line(undust: Run, here: Path, first_stage: Any, arguments, reason):
    (here / "mine").mkdir()
    (here / "mine" / "a.txt").write_text("mine")
    save_file({"emb_params": torch.ones(1, 8)}, here / "word.safetensors")
    before = sorted(here.rglob("*"))
    done = undust("convert", *arguments)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(here.rglob("*")) == before
