"""Training a denoiser: the loss against diffusers', captions, latents, what is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image, ImageChops
from scipy.stats import norm
from torch import Tensor

import undust
from undust.datasets import image_folder
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import load_first_stage, save_component
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.pictures import from_image
from undust.training.caches import all_views
from undust.training.data import Batch, RandomStream
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.run import train

Read = Callable[..., DiffusionConfig]


class Seen:
    """The next batch of a task, what the network is given and what it answers, and the loss."""

    @torch.no_grad()
    def __init__(self, task: DiffusionTask, count: int = 8) -> None:
        chance = torch.Generator().manual_seed(2)
        for parameter in task.modules.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=chance)
        given: list[tuple[Tensor, Tensor, Tensor]] = []
        answered: list[Tensor] = []
        unet = task.model.unet
        hooks = [
            unet.register_forward_pre_hook(lambda _, inputs: given.append(inputs)),
            unet.register_forward_hook(lambda *call: answered.append(call[2])),
        ]
        batch = task.order.batch(3, count)
        self.loss = task.losses(batch)["loss"]
        for hook in hooks:
            hook.remove()
        ((self.x, self.told, _),), (self.output,) = given, answered
        posterior = task.latents.posterior(task.data.views.drawn(batch))
        mean, deviation, shape = posterior.mean, posterior.deviation, posterior.mean.shape[1:]
        self.z = mean + deviation * batch.normal(RandomStream.POSTERIOR, shape)
        self.noise = batch.normal(RandomStream.NOISE, shape)
        self.uniform = batch.uniform(RandomStream.TIME)[:, 0]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_what_diffusers_scheduler_makes_of_it(
    prediction: str, diffusion_recipe: Read, tmp_path: Path
):
    """Its noised latents go into the network; the squared distance to its target is the loss."""
    seen = Seen(DiffusionTask(diffusion_recipe(f"diffusion.prediction={prediction}"), tmp_path))
    scheduler = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    steps = seen.told.long()
    torch.testing.assert_close(seen.x, scheduler.add_noise(seen.z, seen.noise, steps))
    targets = {
        "epsilon": seen.noise,
        "sample": seen.z,
        "v_prediction": scheduler.get_velocity(seen.z, seen.noise, steps),
    }
    expected = (seen.output - targets[prediction]).square().mean()
    torch.testing.assert_close(seen.loss, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_learns_the_way_from_picture_to_noise(
    shift: float, diffusion_recipe: Read, tmp_path: Path
):
    """n − z at (1 − τ)·z + τ·n as in diffusers' scripts, at even times between theirs, shifted."""
    recipe = diffusion_recipe("diffusion.process=flow", f"diffusion.shift={shift}")
    seen = Seen(DiffusionTask(recipe, tmp_path))
    tau = 0.001 + 0.999 * seen.uniform
    tau = (shift * tau / (1 + (shift - 1) * tau)).float()
    theirs = FlowMatchEulerDiscreteScheduler(1000, shift)
    assert theirs.sigma_min < tau.min() < tau.max() < theirs.sigma_max == 1
    torch.testing.assert_close(seen.told, 1000 * tau, rtol=1e-5, atol=1e-3)
    tau = tau[:, None, None, None]
    torch.testing.assert_close(seen.x, (1 - tau) * seen.z + tau * seen.noise, rtol=1e-4, atol=1e-5)
    expected = (seen.output - (seen.noise - seen.z)).square().mean()
    torch.testing.assert_close(seen.loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["edm", "v_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_learns_what_karras_wrote(
    sigma_data: float, prediction: str, diffusion_recipe: Read, tmp_path: Path
):
    """Karras et al. 2022, eq. 2, 7 and 8: the mean of λ(σ)·‖D(y + n; σ) − y‖²."""
    recipe = diffusion_recipe(
        "diffusion.process=edm",
        f"diffusion.sigma_data={sigma_data}",
        f"diffusion.prediction={prediction}",
        "diffusion.p_mean=-0.5",
        "diffusion.p_std=1.5",
    )
    seen = Seen(DiffusionTask(recipe, tmp_path))
    log = -0.5 + 1.5 * torch.from_numpy(norm.ppf(seen.uniform.numpy())).float()
    torch.testing.assert_close(seen.told, log / 4)
    sigma = log.exp()[:, None, None, None]
    noisy, total = seen.z + sigma * seen.noise, sigma**2 + sigma_data**2
    torch.testing.assert_close(seen.x, noisy / total.sqrt())
    output = seen.output if prediction == "edm" else -seen.output
    denoised = sigma_data**2 / total * noisy + sigma * sigma_data / total.sqrt() * output
    weight = total / (sigma * sigma_data) ** 2
    expected = (weight * (denoised - seen.z).square()).mean()
    torch.testing.assert_close(seen.loss, expected, rtol=1e-4, atol=0)


def test_with_zero_terminal_snr_the_last_time_step_is_noise(diffusion_recipe: Read, tmp_path: Path):
    """Lin et al. 2024: there the network sees the noise alone, and v asks it for the picture."""
    recipe = diffusion_recipe(
        "diffusion.zero_terminal_snr=true", "diffusion.prediction=v_prediction", "diffusion.steps=4"
    )
    seen = Seen(DiffusionTask(recipe, tmp_path), 32)
    last = seen.told == 3
    assert 0 < last.sum() < 32
    torch.testing.assert_close(seen.x[last], seen.noise[last])
    theirs = DDIMScheduler(
        4, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True
    ).get_velocity(seen.z, seen.noise, seen.told.long())
    torch.testing.assert_close(theirs[last], -seen.z[last])
    expected = (seen.output - theirs).square().mean()
    torch.testing.assert_close(seen.loss, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("process", ["linear", "scaled-linear", "cosine", "sigmoid"])
def test_discrete_time_steps_are_whole(
    process: str, shift: float, diffusion_recipe: Read, tmp_path: Path
):
    """The same steps for the same numbers in every version: runs are resumed with a newer one."""
    recipe = diffusion_recipe(f"diffusion.process={process}", f"diffusion.shift={shift}")
    seen = Seen(DiffusionTask(recipe, tmp_path), 200)
    shifted = shift * seen.uniform / (1 + (shift - 1) * seen.uniform)
    assert torch.equal(seen.told, (1000 * shifted).floor().float())


@torch.no_grad()
def test_before_training_it_predicts_nothing(diffusion_recipe: Read, tmp_path: Path):
    """The network starts at zero, so the loss is the variance of the noise."""
    task = DiffusionTask(diffusion_recipe(), tmp_path)
    batch = task.order.batch(0, 4)
    noise = batch.normal(RandomStream.NOISE, (4, 8, 8))
    torch.testing.assert_close(task.losses(batch)["loss"], noise.square().mean())


@torch.no_grad()
def test_noisier_levels_are_weighted_as_min_snr_says(diffusion_recipe: Read, tmp_path: Path):
    """For ε of a network that says 0: mean of min(SNR, 5)/SNR times each sample's noise²."""
    task = DiffusionTask(diffusion_recipe("diffusion.weighting=min-snr"), tmp_path)
    batch = task.order.batch(0, 8)
    timestep = (batch.uniform(RandomStream.TIME)[:, 0] * 1000).long()
    kept = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear").alphas_cumprod[timestep].double()
    snr = kept / (1 - kept)
    noise = batch.normal(RandomStream.NOISE, (4, 8, 8)).double()
    expected = (snr.clamp(max=5) / snr * noise.square().mean((1, 2, 3))).mean()
    torch.testing.assert_close(task.losses(batch)["loss"], expected.float(), rtol=1e-4, atol=0)


def test_time_steps_are_drawn_evenly_or_as_the_shift_says(diffusion_recipe: Read, tmp_path: Path):
    """The share of the 1,000 steps below t is t itself, and with shift s it is t/(s − (s − 1)t)."""
    for shift in (1.0, 3.0):
        task = DiffusionTask(diffusion_recipe(f"diffusion.shift={shift}"), tmp_path)
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        task.model.unet.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
        with torch.no_grad():
            task.losses(task.order.batch(0, 500))
        timestep = seen[0][1]
        assert 0 <= timestep.min() <= timestep.max() <= 999
        for t in (0.25, 0.5, 0.75):
            share = (timestep < 1000 * t).float().mean().item()
            expected = t / (shift - (shift - 1) * t)
            assert share == pytest.approx(expected, abs=4 * (0.25 / 500) ** 0.5)


def captions(task: DiffusionTask, count: int) -> list[tuple[int, str]]:
    """The samples of a batch and the words that the text encoder was given for them."""
    seen: list[tuple[Tensor]] = []
    embeddings = task.model.texts[0].encoder.get_submodule("text_model.embeddings")
    hook = embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:1]))
    batch = task.order.batch(0, count)
    with torch.no_grad():
        task.losses(batch)
    hook.remove()
    tokenizer = task.text.tokenizer
    samples = image_folder.read(task.config.data.folder)
    known = ["", *(caption for sample in samples for caption in sample.captions.values())]
    told = {tuple(tokenizer([caption])[0].tolist()): caption for caption in known}
    assert len(told) == len(known) == 25
    return [
        (sample, told[tuple(ids)])
        for sample, ids in zip(batch.sample, seen[0][0].tolist(), strict=True)
    ]


def test_every_picture_gets_its_own_captions_in_both_languages(
    diffusion_recipe: Read, tmp_path: Path
):
    task = DiffusionTask(diffusion_recipe("captions.drop=0"), tmp_path)
    drawn = captions(task, 300)
    samples = image_folder.read(task.config.data.folder, split="train")
    texts = [list(sample.captions.values()) for sample in samples]
    assert set(drawn) == {(k, text) for k, both in enumerate(texts) for text in both}
    english = sum(caption.isascii() for _, caption in drawn)
    assert english == pytest.approx(150, abs=4 * 300**0.5 / 2)


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_as_many_captions_are_dropped_as_the_recipe_says(
    drop: float, diffusion_recipe: Read, tmp_path: Path
):
    drawn = captions(DiffusionTask(diffusion_recipe(f"captions.drop={drop}"), tmp_path), 300)
    dropped = sum(caption == "" for _, caption in drawn)
    assert dropped == pytest.approx(300 * drop, abs=4 * (300 * drop * (1 - drop)) ** 0.5)


@torch.no_grad()
def test_latents_are_scaled_and_those_held_out_are_apart(
    diffusion_recipe: Read, first_stage: Path, tmp_path: Path
):
    task = DiffusionTask(diffusion_recipe(), tmp_path)
    images = [Image.open(task.config.data.folder / f"{number:02}.png") for number in range(12)]
    pictures = torch.stack([from_image(image, (16, 16)) for image in images]) / 127.5 - 1
    posterior = load_first_stage(first_stage).encode(pictures)
    batch = Batch(0, 0, tuple(range(12)), (0,) * 12, tuple(range(12)))
    noise = batch.normal(RandomStream.POSTERIOR, (4, 8, 8))
    expected = 0.18215 * (posterior.mean + (0.5 * posterior.logvar).exp() * noise)
    torch.testing.assert_close(task.latents.sample(batch), expected)
    kept = safetensors_file.load(tmp_path / "latents.safetensors")
    torch.testing.assert_close(kept["mean"], 0.18215 * posterior.mean[:10])


def test_latents_are_made_once_and_again_for_another_first_stage(
    diffusion_recipe: Read, tmp_path: Path
):
    file = tmp_path / "latents.safetensors"
    DiffusionTask(diffusion_recipe(), tmp_path)
    made = file.stat().st_mtime_ns
    DiffusionTask(diffusion_recipe("run.steps=9"), tmp_path)
    assert file.stat().st_mtime_ns == made
    torch.manual_seed(5)
    other = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4))
    save_component(tmp_path / "other", other)
    before = safetensors_file.load(file)["mean"].clone()
    task = DiffusionTask(diffusion_recipe(f"first_stage={tmp_path / 'other'}"), tmp_path)
    assert file.stat().st_mtime_ns != made
    assert not torch.equal(task.latents.posterior(all_views(task.data)).mean[: len(before)], before)


def test_what_is_published_is_a_model(diffusion_recipe: Read, tmp_path: Path):
    train(diffusion_recipe("run.steps=2"), tmp_path / "out")
    model = undust.load(tmp_path / "out/model")
    assert model.size == (16, 16)
    assert model.generate("녹", seed=1, steps=2)[0].image.size == (16, 16)


@pytest.mark.parametrize(
    ("process", "changes"),
    [
        ("flow", []),
        ("flow", ["diffusion.shift=3"]),
        ("edm", []),
        ("edm", ["diffusion.sigma_data=1", "diffusion.prediction=v_prediction"]),
    ],
)
def test_what_is_trained_paints_the_same_in_diffusers(
    process: str, changes: list[str], diffusion_recipe: Read, tmp_path: Path
):
    """Three steps, saved, loaded by the plain call; Euler's method in both, from the same noise.

    Theirs of rectified flow begins at 1 − 1/1000 and tells the network whole time steps. EDM's
    starts as if pictures had deviation 1.
    """
    recipe = diffusion_recipe(
        f"diffusion.process={process}",
        *changes,
        *("run.steps=3", "optimizer.learning_rate=0.1", "optimizer.warm_up=3"),
    )
    train(recipe, tmp_path / "out")
    model = undust.load(tmp_path / "out/model")
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (ours,) = model.generate("녹", noise=start, steps=7, sampler="euler")

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out/model")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe.scheduler
    if process == "flow":
        assert ours.recipe.schedule == "trailing"
    else:
        start = start * ((80**2 + theirs.config.sigma_data**2) / (80**2 + 1)) ** 0.5
        assert ours.recipe.schedule == "karras"
    asked: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 7}
    latent = pipe("녹", latents=start, output_type="latent", **asked).images[0]
    tolerance = 1e-2 if process == "flow" else 1e-4
    assert (ours.latent - latent).norm() < tolerance * latent.norm()
    (other,) = model.generate("sky over sand", noise=start, steps=7, sampler="euler")
    assert (other.latent - latent).norm() > 1e-2 * latent.norm()


def test_it_learns(diffusion_recipe: Read, tmp_path: Path):
    """Predicting nothing costs 1 on average; after 60 small steps it costs a fifth less."""
    losses: list[float] = []
    recipe = diffusion_recipe(
        *("run.steps=60", "run.batch=16", "optimizer.learning_rate=1e-2"),
        *("run.checkpoint_every=100", "run.log_every=100"),
    )
    train(recipe, tmp_path, observe=lambda progress: losses.append(progress.losses["loss"]))
    assert sum(losses[-20:]) / 20 < 0.8 * sum(losses[:5]) / 5


def test_a_preview_shows_the_recipes_prompts(diffusion_recipe: Read, tmp_path: Path):
    """As `generate` paints them, with seed 0."""
    task = DiffusionTask(diffusion_recipe('previews=["sky", "풀과 돌"]'), tmp_path)
    sheet = task.preview()
    alone = task.model.generate("풀과 돌", seed=0, steps=20)[0].image
    width = (sheet.width - 2) // 2
    place = sheet.crop((2 + width, 2, 2 + width + 16, 18))
    assert sheet.size == (2 * 18 + 2, 18 + 2)
    difference = from_image(place, (16, 16)).int() - from_image(alone, (16, 16)).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.crop=8", r"data\.crop: latents are made of whole pictures"),
        (
            "diffusion.zero_terminal_snr=true",
            "prediction: epsilon does not work for a process that ends",
        ),
        ("diffusion.beta_end=2", r"diffusion\.beta_end: has to be less than 1"),
        ("diffusion.weighting=min-snrr", "unknown weighting 'min-snrr'; did you mean 'min-snr'"),
        ("first_stage=pyproject.toml/absent", "pyproject.toml/absent"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    change: str, said: str, diffusion_recipe: Read, tmp_path: Path
):
    with pytest.raises(UndustError, match=said):
        DiffusionTask(diffusion_recipe(change), tmp_path)


def test_a_model_without_captions_is_trained_saved_and_painted_with(
    diffusion_recipe: Read, tmp_path: Path
):
    """Every sample is trained without a caption: the guidance's two halves are the same."""
    train(diffusion_recipe("captions.fields=[]", "run.steps=2"), tmp_path / "out")
    model = undust.load(tmp_path / "out/model")
    task = DiffusionTask(diffusion_recipe("captions.fields=[]"), tmp_path / "task")
    assert task.text.tokenizer.vocabulary == model.texts[0].tokenizer.vocabulary
    assert not [note for note in task.notes if "caption" in note]
    one, two = (model.generate("", seed=1, steps=2, guidance=scale)[0].image for scale in (1, 4))
    assert one.size == (16, 16)
    assert ImageChops.difference(one, two).getextrema() <= ((0, 1),) * 3
    assert model.generate("any words", seed=1, steps=2)[0].image.size == (16, 16)
    assert train(
        diffusion_recipe("captions.fields=[]", "run.steps=3"), tmp_path / "out", resume=True
    )


def test_the_command_at_the_end_is_short(diffusion_recipe: Read, tmp_path: Path):
    words = "in a caption of many words" * 20
    recipe = diffusion_recipe(f'captions.templates={{text = ["{{}} {words}"]}}')
    task = DiffusionTask(recipe, tmp_path / "out")
    command = task.next_steps(Path("model"), Path("data"))
    assert 40 < len(command.partition(" --model")[0]) < 100
