"""Words that are trained here: nothing else changes, and they are the same in diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import undust
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.folder import read_json
from undust.training.run import train
from undust.training.textual_inversion import FILE, TextualInversionConfig, TextualInversionTask

Folder = Callable[[str], Path]
Recipe = Callable[..., TextualInversionConfig]
WORD: dict[str, Any] = {"word": "<can>", "initial": "can", "vectors": 2}
OURS: dict[str, Any] = {"steps": 3, "sampler": "ddim", "schedule": "leading", "guidance": 3}
PROMPT = "a photo of <can> and sand"


@pytest.fixture
def recipe(existing_recipe: Callable[..., Any]) -> Recipe:
    return partial(existing_recipe, "textual-inversion")


def painted(model: undust.LatentDiffusion, prompt: str, *files: Path) -> Tensor:
    noise = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0))
    [picture] = model.generate(prompt, noise=noise, embeddings=[*map(str, files)], **OURS)
    return picture.latent


def by_diffusers(folder: Path, file: Path) -> Tensor:
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    if "XL" not in kind.__name__:
        pipe = kind.from_pretrained(folder, safety_checker=None)
        pipe.load_textual_inversion(file.parent)
    else:
        pipe, vectors = kind.from_pretrained(folder), safetensors_file.load(file)
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            pipe.load_textual_inversion(
                vectors[key],
                token="<can>",
                text_encoder=getattr(pipe, f"text_encoder{number}"),
                tokenizer=getattr(pipe, f"tokenizer{number}"),
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPT,
        latents=torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0)),
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
    ).images[0]


@pytest.mark.parametrize("variant", ["sd1", "sdxl"])
def test_before_the_first_step_it_is_the_initial_word(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    model = undust.load(variant_folder(variant))
    task = TextualInversionTask(recipe(variant_folder(variant), **WORD), tmp_path)
    assert torch.equal(painted(task.model, "sand"), painted(model, "sand"))
    twice = PROMPT.replace("<can>", "can can")
    assert torch.equal(painted(task.model, PROMPT), painted(model, twice))
    task.losses(task.order.batch(0, 2))["loss"].backward()
    grown = [parameter.grad for parameter in task.modules.parameters()]
    assert [grad.shape[0] for grad in grown if grad is not None] == [2] * len(model.texts)
    frozen = [each for network in model.networks.values() for each in network.parameters()]
    assert all(each.grad is None for each in frozen)


@pytest.mark.parametrize("variant", ["sd1", "sdxl"])
def test_the_file_gives_the_trained_picture_here_and_in_diffusers(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    folder = variant_folder(variant)
    config = recipe(folder, optimizer={"learning_rate": 0.3}, **WORD)
    assert train(config, tmp_path)
    trained = TextualInversionTask(config, tmp_path / "again")
    state = safetensors_file.load(next(tmp_path.glob("checkpoints/*/average.safetensors")))
    trained.modules.load_state_dict(state)
    expected, file = painted(trained.model, PROMPT), tmp_path / "model" / FILE
    model = undust.load(folder)
    assert torch.equal(painted(model, PROMPT, Path(f"{file}=<can>")), expected)
    assert (painted(model, PROMPT) - expected).norm() > 1e-3 * expected.norm()
    theirs = by_diffusers(folder, file)
    assert (theirs - expected).norm() < 1e-4 * expected.norm()


def test_a_run_goes_on_as_if_it_had_not_stopped(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    for steps in (1, 3):
        config = recipe(variant_folder("sd1"), run={"steps": steps, "ema": 0.9}, **WORD)
        assert train(config, tmp_path / "parts", resume=steps > 1)
    assert train(config, tmp_path / "whole")
    parts, whole = ((tmp_path / name / "model" / FILE).read_bytes() for name in ("parts", "whole"))
    assert parts == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": "a can"}, "word: has to be one word of letters, digits and "),
        ({"word": "can"}, "word: can is a word of the model; another would be <can>"),
        ({"initial": "a can", "vectors": 1}, "vectors: <can> has 1, and initial has 2 tokens"),
        ({"initial": " "}, "initial: ' ' has no word"),
        ({"templates": ["a can"]}, r"templates\.0: has to have {} once"),
        ({"prior": {"prompt": "a can"}}, "prior: leave it out"),
        ({"prompt": "a can"}, "prompt: leave it out"),
        ({"captions": {"fields": ["caption"]}}, "captions: leave it out"),
    ],
)
def test_bad_words_are_refused(
    change: dict[str, Any], message: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    with pytest.raises(UndustError, match=message) as error:
        TextualInversionTask(recipe(variant_folder("sd1"), **{**WORD, **change}), tmp_path)
    assert "\n" not in str(error.value)
