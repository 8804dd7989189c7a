"""Fine-tuning of models that exist: what is trained, what is written, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image, ImageChops

import undust
from formats.original.conftest import build as build_parts
from formats.original.test_model import write
from undust.errors import UndustError
from undust.formats.folder import read_json
from undust.pipeline import LatentDiffusion
from undust.training import kinds
from undust.training.data import RandomStream
from undust.training.finetune import FinetuneConfig, FinetuneTask
from undust.training.loop import Trainer
from undust.training.run import train

WORDS = ("unet", "text_encoder", "text_encoder_2")
Folder = Callable[[str], Path]
Recipe = Callable[..., FinetuneConfig]


@pytest.fixture
def recipe(existing_recipe: Callable[..., Any]) -> Recipe:
    return partial(existing_recipe, "finetune")


def weights(model: LatentDiffusion) -> dict[str, torch.Tensor]:
    """All weights of a model, by network and name."""
    return {
        f"{name}/{key}": value
        for name, network in model.networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("variant", ["sd1", "sd2-v", "sdxl"])
def test_a_published_kind_of_model_is_trained_and_opens_in_diffusers(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """All networks but the first stage change, and the result gives diffusers' picture."""
    before = undust.load(variant_folder(variant))
    names = [name for name in WORDS if name in before.networks]
    assert train(recipe(variant_folder(variant), train=names), tmp_path)
    after = undust.load(tmp_path / "model")
    old, new = weights(before), weights(after)
    changed = {key.partition("/")[0] for key in old if not torch.equal(old[key], new[key])}
    assert changed == set(names)
    assert after.prediction == before.prediction
    spare = {} if variant == "sdxl" else {"safety_checker": None}
    kind = getattr(diffusers, read_json(tmp_path / "model/model_index.json")["_class_name"])
    pipe = kind.from_pretrained(tmp_path / "model", **spare)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0))
    theirs = pipe(
        "sky over sand",
        latents=noise,
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    options: dict[str, Any] = {"steps": 3, "sampler": "ddim", "schedule": "leading", "guidance": 3}
    [ours] = after.generate("sky over sand", noise=noise, **options)
    assert (ours.latent - theirs).norm() < 1e-4 * theirs.norm()
    [unlike] = before.generate("sky over sand", noise=noise, **options)
    assert (unlike.latent - theirs).norm() > 1e-2 * theirs.norm()


@torch.no_grad()
def test_the_objective_is_that_of_the_models_prediction(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """v by diffusers' scheduler of the same folder, under the captions by diffusers' encoder."""
    place = variant_folder("sd2-v")
    task = FinetuneTask(recipe(place, captions={"drop": 0.5}), tmp_path)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    batch = task.order.batch(0, 4)
    z, noise = task.latents.sample(batch), batch.normal(RandomStream.NOISE, (4, 8, 8))
    steps = (1000 * batch.uniform(RandomStream.TIME)[:, 0]).long()
    captions = [caption or "" for caption in task.text(batch)]
    assert 0 < captions.count("") < 4
    states, _ = pipe.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)
    output = pipe.unet(scheduler.add_noise(z, noise, steps), steps, states).sample
    expected = (output - scheduler.get_velocity(z, noise, steps)).square().mean()
    torch.testing.assert_close(task.losses(batch)["loss"], expected, rtol=1e-4, atol=0)


@torch.no_grad()
def test_xl_is_told_the_sizes_of_the_data(variant_folder: Folder, recipe: Recipe, tmp_path: Path):
    """16 px pictures at 32 px, with diffusers' time ids, pooled text and both encoders' states."""
    place = variant_folder("sdxl")
    task = FinetuneTask(recipe(place, captions={"drop": 0}), tmp_path)
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(place)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    batch = task.order.batch(0, 4)
    z, noise = task.latents.sample(batch), batch.normal(RandomStream.NOISE, (4, 8, 8))
    steps = (1000 * batch.uniform(RandomStream.TIME)[:, 0]).long()
    states, _, pooled, _ = pipe.encode_prompt(
        task.text(batch), device="cpu", do_classifier_free_guidance=False
    )
    sizes = torch.tensor([[16.0, 16, 0, 0, 32, 32]] * 4)
    added = {"text_embeds": pooled, "time_ids": sizes}
    noised = scheduler.add_noise(z, noise, steps)
    output = pipe.unet(noised, steps, states, added_cond_kwargs=added).sample
    expected = (output - noise).square().mean()
    torch.testing.assert_close(task.losses(batch)["loss"], expected, rtol=1e-4, atol=0)


def test_a_single_file_becomes_a_folder(recipe: Recipe, tmp_path: Path):
    """Of one step with a rate of almost 0: the same model under other names."""
    file = write("sd1", build_parts, tmp_path)
    config = recipe(file, optimizer={"learning_rate": 1e-30}, run={"steps": 1})
    assert train(config, tmp_path / "run")
    old, new = (weights(undust.load(place)) for place in (file, tmp_path / "run/model"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_class_pictures_are_made_once_and_their_loss_is_a_term(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """Ruiz et al. 2022, eq. 2: the loss of own pictures plus the weighted one of the class's."""
    prior = {"prompt": "a thing", "pictures": 3, "weight": 0.25}
    config = recipe(variant_folder("sd1"), prompt="a sks thing", prior=prior)
    seen: list[tuple[int, int]] = []
    task = FinetuneTask(config, tmp_path, None, lambda *done: seen.append(done))
    assert (3, 3) in seen
    [made] = [path for path in (tmp_path / "prior").iterdir() if path.is_dir()]
    pictures = {path: path.stat().st_mtime_ns for path in made.glob("*.png")}
    assert len(pictures) == 3
    model = undust.load(variant_folder("sd1"))
    [again] = model.generate("a thing", seed=1, size=32)
    first = sorted(pictures)[1]
    apart = ImageChops.difference(Image.open(first), again.image).getextrema()
    assert max(most for _, most in apart) <= 1
    found = task.losses(task.order.batch(0, 4))
    torch.testing.assert_close(found["loss"], found["instance"] + 0.25 * found["prior"])
    plain = FinetuneTask(recipe(variant_folder("sd1"), prompt="a sks thing"), tmp_path / "plain")
    assert torch.equal(plain.losses(plain.order.batch(0, 4))["loss"], found["instance"])
    FinetuneTask(config, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made.glob("*.png")} == pictures
    task.modules.eval()
    assert task.losses(task.order.batch(0, 4)).keys() == {"loss"}  # of the validation


def test_parts_of_a_step_have_the_class_pictures_of_the_whole(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    prior = {"prompt": "a thing", "pictures": 3}
    found: list[list[dict[str, float]]] = []
    for parts in (1, 2):
        config = recipe(variant_folder("sd1"), prior=prior, run={"batch": 4, "accumulate": parts})
        trainer = Trainer(FinetuneTask(config, tmp_path), config, tmp_path)
        found.append([trainer.gradients.backward(step, 4) for step in (0, 1)])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_run_goes_on_as_if_it_had_not_stopped(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    tables = {"prior": {"prompt": "a thing", "pictures": 2}, "train": ["text_encoder"]}
    for steps in (1, 3):
        config = recipe(variant_folder("sd1"), run={"steps": steps}, **tables)
        assert train(config, tmp_path / "parts", resume=steps > 1)
    assert train(config, tmp_path / "whole")
    one, other = (weights(undust.load(tmp_path / name / "model")) for name in ("parts", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    other_model = recipe(variant_folder("sd2-v"), run={"steps": 4}, **tables)
    with pytest.raises(UndustError, match="the digest of the model that it starts from was"):
        train(other_model, tmp_path / "parts", resume=True)


@pytest.mark.parametrize("variant", ["sd1-inpainting", "x4-upscaler"])
def test_models_of_masks_and_of_low_resolution(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    config = recipe(variant_folder(variant), run={"steps": 1})
    assert train(config, tmp_path)
    assert undust.load(tmp_path / "model").extra_channels > 0


def test_another_first_stage(
    variant_folder: Folder, first_stage: Path, recipe: Recipe, tmp_path: Path
):
    """The model's own with another scale: latents by it, and it is in the result."""
    model = undust.load(variant_folder("sd1"))
    config = model.autoencoder.config
    model.autoencoder.config = config.model_copy(update={"scaling_factor": 0.5})
    model.save(tmp_path / "other")
    assert train(
        recipe(variant_folder("sd1"), first_stage=str(tmp_path / "other")), tmp_path / "run"
    )
    found = read_json(tmp_path / "run/model/vae/config.json")
    assert found["scaling_factor"] == 0.5
    with pytest.raises(UndustError, match="has 4 channels and is 2 times smaller; the model needs"):
        FinetuneTask(recipe(variant_folder("sd1"), first_stage=str(first_stage)), tmp_path)


REFUSED = [
    ({"model": "emojy"}, "model: unknown model 'emojy'; did you mean 'emoji'"),
    ({"model": "tests/such"}, "model: tests/such does not exist"),
    ({"train": ["unets"]}, "train: unknown network of the model 'unets'; did you mean 'unet'"),
    ({"train": ["text_encoder_2"]}, "'text_encoder_2'; did you mean 'text_encoder'"),
    ({"train": ["vae"]}, 'vae is trained by a recipe of kind "first-stage"'),
    ({"train": []}, "train: "),
    ({"labels": {}}, "labels: .* takes no classes"),
    ({"data": {"size": 30}}, "30x30 is not divisible by 4; 32x32 would be"),
    ({"captions": {"fields": ["caption"]}}, "no picture has a caption.* prompt = '…' is one"),
    ({"captions": {"fields": ["name"]}, "prompt": "a"}, "prompt: it replaces the captions"),
    (
        {"diffusion": {"process": "edm"}},
        "diffusion.process: is not known; known here: weighting, times",
    ),
    ({"diffusion": {"weighting": "p3"}}, "unknown .*'p3'"),
    ({"prior": {}}, r"prior\.prompt: "),
    ({"prior": {"prompt": "a", "folder": "/absent"}}, r"prior\.folder: /absent does not exist"),
    ({"train": "unet"}, r'train: has to be a list of names, such as \["unet"\]'),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_bad_recipes_are_refused(
    change: dict[str, Any], message: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    with pytest.raises(UndustError, match=message) as error:
        FinetuneTask(recipe(**{"model": variant_folder("sd1"), **change}), tmp_path)
    assert "\n" not in str(error.value)


def test_the_recipe_of_a_checkpoint_is_read_again(
    existing_recipe: Callable[..., Any], variant_folder: Folder
):
    word = {"word": "<cup>", "initial": "cup"}
    tables = {"prompt": "a cup", "captions": {"drop": 0.5}, "prior": {"prompt": "a thing"}}
    for kind, more in (("finetune", tables), ("lora", tables), ("textual-inversion", word)):
        config = existing_recipe(kind, variant_folder("sd1"), **more)
        assert kinds.parse(json.loads(config.model_dump_json()), "here") == config
