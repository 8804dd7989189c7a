"""Habits of the shell and of other programs: paths with "~", names of options, byte order marks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import undust as package
from undust.formats.recipe_png import read_recipe
from undust.formats.safetensors_file import save

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
