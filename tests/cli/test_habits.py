"""Habits of the shell and of other programs: paths with "~", names of options, byte order marks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import undust as package
from undust.cli import app
from undust.errors import UndustError
from undust.formats.recipe_png import read_recipe
from undust.formats.safetensors_file import save
from undust.generation.other_names import OTHER_NAMES

Run = Callable[..., Any]
QUICK = ("--steps", 1, "--seed", 1)


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model, a picture, a learnt word and a LoRA, which is not the working folder."""
    folder = tmp_path / "my home"
    shutil.copytree(tiny_model, folder / "tiny")
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    Image.new("RGB", (32, 32), "white").save(folder / "mask.png")
    draw = torch.Generator().manual_seed(0)
    save(folder / "toy.safetensors", {"emb_params": torch.randn(2, 16, generator=draw)})
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    low_rank = {"lora_A": torch.randn(2, 16, generator=draw), "lora_B": torch.ones(16, 2)}
    named = {f"{place}.{name}.weight": tensor for name, tensor in low_rank.items()}
    save(folder / "style.safetensors", named)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


def test_a_tilde_is_the_home_in_every_option(undust: Run, home: Path):
    done = undust(
        *("generate", "a toy", *QUICK, "--model", "~/tiny", "--vae", "~/tiny/vae", "--out=~/b.png"),
        *("--init", "~/a.png", "--mask=~/mask.png", "--lora", "~/style.safetensors:0.5"),
        *("--embedding", "~/toy.safetensors=toy", "--refiner", "~/tiny@0.5"),
        *("--guide", "region:prompt=a cat,mask=~/mask.png", "--guide", "autoguidance:model=~/tiny"),
    )
    assert (done.code, done.out) == (0, f"{home / 'b.png'}\n"), done.err
    recipe = read_recipe(home / "b.png")
    assert recipe["init"]["path"] == str(home / "a.png")
    assert recipe["mask"]["path"] == str(home / "mask.png")
    lora = recipe["loras"][0]
    assert (lora["path"], lora["weight"]) == (str(home / "style.safetensors"), 0.5)
    again = undust("rerun", "~/b.png", "--out", "~/again.png")
    assert again.code == 0, again.err
    assert (home / "again.png").read_bytes() == (home / "b.png").read_bytes()
    assert json.loads(undust("inspect", "--json", "~/b.png").out)["recipe"]["prompt"] == "a toy"
    assert not Path("~").exists()


def test_a_tilde_is_the_home_in_python_too(home: Path):
    model = package.load("~/tiny", vae="~/tiny")
    (picture,) = model.generate(
        "toy",
        steps=1,
        seed=1,
        init="~/a.png",
        mask=Path("~/mask.png"),
        loras="~/style.safetensors:0.5",
        embeddings={"path": "~/toy.safetensors", "word": "toy"},
        refiner={"model": "~/tiny"},
    )
    assert picture.save("~/made/b.png") == home / "made/b.png"
    package.load(Path("~/tiny")).save("~/copy")
    assert (home / "copy/model_index.json").is_file()
    recipe = package.Recipe.read(read_recipe(home / "made/b.png"))
    assert recipe.loras[0].path == str(home / "style.safetensors")


def test_a_tilde_in_a_recipe_of_training(undust: Run, home: Path, first_stage_recipe: Path):
    recipe = first_stage_recipe.read_text().replace('folder = "', 'folder = "~/absent')
    (home / "run.toml").write_text("\ufeff" + recipe, "utf-8")
    done = undust("train", "~/run.toml", "--out", "~/run")
    assert done.code == 2
    assert str(home / "absent") in done.err


def test_a_tilde_that_is_no_home_stays(undust: Run, tiny_model: Path):
    done = undust(*("generate", "~ 5 cats", "--model", tiny_model, *QUICK, "--json"))
    assert json.loads(done.out)["prompt"] == "~ 5 cats"
    refused = undust("generate", "a", "--model", "~no-such-user/tiny")
    assert (refused.code, "~no-such-user/tiny" in refused.err) == (2, True)


def test_a_byte_order_mark_is_no_part_of_a_prompt(undust: Run, tiny_model: Path):
    common = ("--model", tiny_model, *QUICK, "--json")
    done = undust(
        *("generate", "\ufeffa cat", "-", *common, "--negative", "\ufeffa dog"),
        *("--guide", "\ufeffand:prompt=\ufeffa bird"),
        stdin="\ufeffa fish\n\ufeff\na cow\n",
    )
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [each["prompt"] for each in told] == ["a cat", "a fish", "a cow"]
    assert {each["negative"] for each in told} == {"a dog"}
    assert {each["guides"][0]["prompt"] for each in told} == {"a bird"}


def test_a_byte_order_mark_is_no_part_of_a_configuration(home: Path):
    for name in ("model_index.json", "unet/config.json", "tokenizer/merges.txt"):
        file = home / "tiny" / name
        if file.exists():
            file.write_text("\ufeff" + file.read_text("utf-8"), "utf-8")
    assert package.load("~/tiny").generate("a cat", steps=1)


@pytest.mark.parametrize(
    ("line", "here"),
    [
        ("generate --prompt cat", "PROMPT without an option: cat"),
        ("generate -p cat", "PROMPT without an option: cat"),
        ("generate a --width 512 --height 768", "--size 512x768"),
        ("generate a --height=768 --width=512", "--size 512x768"),
        ("generate a -W 512 -H 768", "--size 512x768"),
        ("generate a --H 768", "--size WIDTHx768"),
        ("generate a --resolution 512", "--size 512x512"),
        ("generate a --image-size 512x768", "--size 512x768"),
        ("generate a --cfg-scale 7.5", "--guidance 7.5"),
        ("generate a --cfg 7", "--guidance 7"),
        ("generate a --scale 7", "--guidance 7"),
        ("generate a --guidance_scale=7", "--guidance 7"),
        ("generate a --negative-prompt ugly", "--negative ugly"),
        ("generate a --negative_prompt=ugly", "--negative ugly"),
        ("generate a -n ugly", "--negative ugly"),
        ("generate a -n 4", "--count 4"),
        ("generate a --num-images 4", "--count 4"),
        ("generate a --num_images_per_prompt 4", "--count 4"),
        ("generate a --n_samples 4", "--count 4"),
        ("generate a --n_iter 4", "--count 4"),
        ("generate a --batch-size 4", "--count 4"),
        ("generate a --ddim_steps 50", "--steps 50"),
        ("generate a --num-inference-steps 50", "--steps 50"),
        ("generate a --ckpt sd.safetensors", "--model sd.safetensors"),
        ("generate a --lora-scale 0.5", "--lora FILE:0.5"),
        ("generate a --scheduler euler", "--sampler euler, or --schedule for levels of noise"),
        ("generate a --sampler-name euler_a", "--sampler euler_a"),
        ("generate a --sampling_method euler_a", "--sampler euler_a"),
        ("generate a --output b.png", "--out b.png"),
        ("generate a -o b.png", "--out b.png"),
        ("generate a --outdir b", "--out b"),
        ("generate a --denoise 0.5", "--strength 0.5"),
        ("generate a --denoising-strength 0.5", "--strength 0.5"),
        ("generate a --input a.png", "--init a.png"),
        ("generate a --image a.png", "--init a.png"),
        ("generate a --init-image a.png", "--init a.png"),
        ("generate a --init_img a.png", "--init a.png"),
        ("generate a --mask-image a.png", "--mask a.png"),
        ("generate a --seeds 4", "--seed 4"),
        ("generate a --seeds 1,2,3", "--seed N, and --count for the seeds after it"),
        ("generate a --clip_skip 2", "--clip-skip 2"),
        ("generate a --fp16", "--dtype fp16"),
        ("generate a --cuda", "--device cuda"),
        ("generate a --hires-fix 2", "--upscale 2"),
        ("generate --from-file names.txt", "- < names.txt"),
        ("generate -h", "--help"),
        ("interpolate --prompt a", "FROM without an option: a"),
        ("interpolate a b --num-images 4", "--count 4"),
        ("invert --image a.png", "PICTURE without an option: a.png"),
        ("invert a.png --prompt cat", "PROMPT without an option: cat"),
        ("likelihood a.png -p cat", "--prompt cat"),
        ("rerun --input a.png", "PICTURE without an option: a.png"),
        ("rerun a.png --output b.png", "--out b.png"),
        ("convert --checkpoint_path a.ckpt --dump_path b", "SRC without an option: a.ckpt"),
        ("convert a b --half", "--dtype fp16"),
        ("convert a b --extract_ema", "--ema"),
        ("evaluate --model emoji data", "MODEL without an option: emoji"),
        ("train a.toml --max_train_steps 5", "--set run.steps=5"),
        ("train a.toml --learning-rate 1e-4", "--set optimizer.learning_rate=1e-4"),
        ("train a.toml --output_dir b", "--out b"),
        ("lab samplers --output b", "--out b"),
        ("data check --input b", "DATA without an option: b"),
        ("schedules fit emoji --num_steps 5", "--steps 5"),
    ],
)
def test_an_option_of_another_program_is_pointed_to_ours(undust: Run, line: str, here: str):
    done = undust(*line.split(" "))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "undust: no such option: -" in done.err
    assert f"; here it is {here}" in done.err


@pytest.mark.parametrize("line", ["samplers --prompt a", "inspect a --width 3", "generate a --zzz"])
def test_what_is_nowhere_here_is_not_pointed_to(undust: Run, line: str):
    done = undust(*line.split(" "))
    assert (done.code, "here it is" in done.err) == (2, False)


def test_every_name_elsewhere_is_pointed_to_an_option_there_is():
    command = typer.main.get_command(app).commands["generate"]  # pyright: ignore
    known = {option for each in command.params for option in each.opts} | {"--prompt"}
    assert {f"--{name.replace('_', '-')}" for name in OTHER_NAMES.values()} <= known
    assert not {f"--{name.replace('_', '-')}" for name in OTHER_NAMES} & known


def test_python_points_to_the_same_names(tiny_model: Path):
    model = package.load(tiny_model)
    for other, own in [("num_inference_steps", "steps"), ("width", "size"), ("cfg", "guidance")]:
        with pytest.raises(UndustError, match=f"unknown option '{other}'; did you mean '{own}'"):
            model.recipes("a", **{other: 3})
