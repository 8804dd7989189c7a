"""VQ and tiny first stages, fine-tuning, and faults that a run tells of."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import undust
from undust.errors import UndustError
from undust.formats import standalone_vae
from undust.formats.components import load_first_stage, save_component
from undust.formats.folder import read_json
from undust.latent.first_stage import FirstStage
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.networks.tiny import TinyAutoencoder
from undust.networks.vq import VQAutoencoder
from undust.training import equivariance, kinds
from undust.training.data import RandomStream
from undust.training.first_stage import FirstStageConfig, FirstStageTask
from undust.training.run import prepare, train

Recipe = Callable[..., FirstStageConfig]
TINY = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}


@pytest.fixture
def recipe(write_recipe: Callable[[str], Path]) -> Recipe:
    """The tiny KL or VQ recipe with other values of its keys; None removes a table."""

    def read(kind: str = "first-stage", **changes: Any) -> FirstStageConfig:
        tree = tomllib.loads(write_recipe(kind).read_text("utf-8"))
        for name, value in changes.items():
            table = tree.get(name)
            tree[name] = {**table, **value} if table and isinstance(value, dict) else value
        parsed = kinds.parse({k: v for k, v in tree.items() if v is not None}, "recipe")
        assert isinstance(parsed, FirstStageConfig)
        return parsed.complete()

    return read


def notes(config: FirstStageConfig, out: Path) -> list[str]:
    """The lines that a run tells, each as often as it does."""
    found: list[str] = []
    trainer, first = prepare(config, out)
    trainer.train(lambda progress: found.extend(progress.notes))
    return first + found


@pytest.mark.parametrize(("factor", "channels"), [(2, 1), (32, 64)])
@pytest.mark.parametrize("table", ["autoencoder", "vq"])
def test_factors_and_channels(
    table: str, factor: int, channels: int, recipe: Recipe, tmp_path: Path
):
    network = {"block_out_channels": [4] * factor.bit_length(), "norm_num_groups": 2}
    sizes = {table: {**network, "latent_channels": channels}}
    config = recipe(**{"autoencoder": None, "data": {"size": 64, "crop": None}, **sizes})
    task = FirstStageTask(config, tmp_path)
    task.losses(task.order.batch(0, 2))["loss"].backward()
    assert all(p.grad is not None for p in task.modules.parameters())
    task.publish(tmp_path / "model", brief=True)
    latents = load_first_stage(tmp_path / "model").encode(torch.zeros(1, 3, 64, 64)).mean
    assert latents.shape == (1, channels, 64 // factor, 64 // factor)


def test_the_decoded_picture_of_a_transformed_latent(recipe: Recipe):
    """It is compared with the picture transformed alike, in the training alone."""
    config = recipe(loss={"equivariance": 1.0, "edges": 0.0}, data={"crop": None})
    task = FirstStageTask(config, Path("out"))
    batch = task.order.batch(3, 4)
    x = task.images([*map(task.data.views.central, batch.sample)])
    posterior = task.autoencoder.encode(x)
    noise = batch.normal(RandomStream.POSTERIOR, posterior.mean.shape[1:])
    z = posterior.sample(noise)
    small, large = equivariance.drawn(batch, 1.0)(z, x)
    assert small.shape != z.shape
    expected = (task.autoencoder.decode(small) - large).abs().mean()
    torch.testing.assert_close(task.losses(batch)["pixel"], expected)
    task.modules.eval()
    plain = (task.autoencoder.decode(z) - x).abs().mean()
    torch.testing.assert_close(task.losses(batch)["pixel"], plain)


# VQ


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_trained_vq_opens_in_diffusers_with_the_same_pictures(
    update: str, recipe: Recipe, tmp_path: Path
):
    config = recipe("vq", codebook={"update": update}, run={"steps": 4})
    trainer, _ = prepare(config, tmp_path)
    losses: list[dict[str, float]] = []
    assert trainer.train(lambda progress: losses.append(progress.losses))
    assert ("codebook" in losses[-1]) == (update == "gradient")
    logged = {name for row in losses for name in row}
    assert {"commitment", "codes_in_use", "perplexity", "discriminator"} <= logged
    published = load_first_stage(tmp_path / "model")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "model")
    assert theirs.config.scaling_factor == 1
    task = trainer.task
    assert isinstance(task, FirstStageTask)
    x = task.images([*map(task.data.views.central, task.data.train)])
    with torch.no_grad():
        z = published.encode(x).mean
        torch.testing.assert_close(theirs.encode(x).latents, z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            theirs.decode(z).sample, published.decode(z), atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    assert z.var((0, 2, 3)).mean().sqrt().item() == pytest.approx(1, abs=1e-3)


def test_the_gradients_of_the_vq_loss(recipe: Recipe):
    """To the encoder: the decoder's gradient at the codes, and the commitment's."""
    config = recipe(
        "vq",
        codebook={"update": "gradient"},
        discriminator=None,
        loss={"learned_variance": False, "equivariance": 0, "edges": 0},
        data={"crop": None},
    )
    task = FirstStageTask(config, Path("out"))
    vq = task.autoencoder
    assert isinstance(vq, VQAutoencoder)
    batch = task.order.batch(0, 4)
    task.losses(batch)  # the codes are moved to latents of the batch
    task.losses(batch)["loss"].backward()
    x = task.images([*map(task.data.views.central, batch.sample)])
    z = vq.encode(x).mean
    codes = vq.quantize(vq.quantize.nearest(z)).detach().requires_grad_()
    (at_codes,) = torch.autograd.grad((vq.decode_codes(codes) - x).abs().mean(), codes)
    towards = at_codes + 0.25 * 2 / z.numel() * (z - codes).detach()
    parameters = list(vq.encoder.parameters())
    expected = torch.autograd.grad(z, parameters, towards)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-3)
    weight = vq.quantize.embedding.weight
    index = vq.quantize.nearest(z).flatten()
    rows = (2 / z.numel() * (codes - z)).detach().movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight).index_add(0, index, rows))


def test_half_precision_and_parts_of_a_batch(recipe: Recipe, tmp_path: Path):
    run = {"precision": "bf16", "accumulate": 2, "steps": 2}
    config = recipe("vq", run=run, loss={"equivariance": 1.0}, discriminator={"start": 0})
    losses: list[dict[str, float]] = []
    assert train(config, tmp_path, observe=lambda progress: losses.append(progress.losses))
    assert all("commitment" in row for row in losses)


def test_a_diffusion_model_on_latents_before_quantisation(
    recipe: Recipe, write_recipe: Callable[[str], Path], tmp_path: Path
):
    """Decoding its latents quantises them, here and in diffusers."""
    train(recipe("vq"), tmp_path / "vq")
    path = write_recipe("diffusion")
    changes = [f"first_stage={tmp_path / 'vq'}", "run.steps=2"]
    train(kinds.read(path, changes), tmp_path / "diffusion")
    model = undust.load(tmp_path / "diffusion/model")
    (picture,) = model.generate("sky over sand", steps=2, seed=1)
    z = picture.latent[None]
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "diffusion/model/vae")
    with torch.no_grad():
        expected = theirs.decode(z / theirs.config.scaling_factor).sample
    torch.testing.assert_close(model.decode(z), expected, atol=1e-5, rtol=1e-5)


# Fine-tuning


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published first stage with a scale of its own, and without quant_conv."""
    torch.manual_seed(5)
    config = AutoencoderConfig(
        block_out_channels=(8, 8), norm_num_groups=4, use_quant_conv=False, scaling_factor=1.7
    )
    save_component(tmp_path / "published", Autoencoder(config))
    return tmp_path / "published"


def test_the_decoder_alone(published: Path, recipe: Recipe, tmp_path: Path):
    """Latents and scale stay, to the bit; a resumed run needs the same `init`."""
    config = recipe(autoencoder=None, init=str(published), train="decoder")
    before, out = load_first_stage(published), tmp_path / "out"
    train(config, out)
    after = load_first_stage(out / "model")
    assert after.config == before.config
    ours, theirs = after.state_dict(), before.state_dict()
    changed = {name.split(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"decoder", "post_quant_conv"}
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(after.encode(x).mean, before.encode(x).mean)
    longer = config.model_copy(update={"run": config.run.model_copy(update={"steps": 8})})
    assert train(longer, out, resume=True)
    save_component(published, Autoencoder(before.config))
    with pytest.raises(UndustError, match="the digest of the weights that it starts from was"):
        train(longer, out, resume=True)


def test_all_of_it_from_another_run(first_stage: Path, recipe: Recipe, tmp_path: Path):
    assert recipe(autoencoder=None, init="emoji").autoencoder.latent_channels == 16
    config = recipe(autoencoder=None, init=str(first_stage))
    task = FirstStageTask(config, tmp_path)
    before = load_first_stage(first_stage)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(task.autoencoder.encode(x).mean, before.encode(x).mean)
    train(config, tmp_path / "out")
    assert standalone_vae.load(tmp_path / "out/model").config.scaling_factor == 1


def test_a_vq_decoder_alone_keeps_its_codes(recipe: Recipe, tmp_path: Path):
    train(recipe("vq"), tmp_path / "first")
    config = recipe("vq", vq=None, codebook=None, init=str(tmp_path / "first"), train="decoder")
    train(config, tmp_path / "second")
    first, second = (load_first_stage(tmp_path / name / "model") for name in ("first", "second"))
    assert isinstance(first, VQAutoencoder)
    assert isinstance(second, VQAutoencoder)
    assert torch.equal(first.quantize.embedding.weight, second.quantize.embedding.weight)
    assert not torch.equal(first.last_layer, second.last_layer)


# Tiny first stages


def test_a_tiny_one_learns_from_its_teacher(first_stage: Path, recipe: Recipe, tmp_path: Path):
    config = recipe(
        autoencoder=None,
        tiny=TINY,
        teacher=str(first_stage),
        run={"steps": 60},
        optimizer={"learning_rate": 1e-2, "warm_up": 3},
        data={"crop": None},
    )
    task = FirstStageTask(config, tmp_path)
    teacher, student = load_first_stage(first_stage), task.autoencoder
    batch = task.order.batch(0, 4)
    x = task.images([*map(task.data.views.central, batch.sample)])
    posterior = FirstStage(teacher).encode(x)
    z = posterior.sample(batch.normal(RandomStream.POSTERIOR, posterior.mean.shape[1:]))
    terms = task.losses(batch)
    pictures = FirstStage(teacher).decode(z)
    torch.testing.assert_close(terms["pixel"], (student.decode(z) - pictures).abs().mean())
    error = (student.encode(x).mean - posterior.mean).square().mean()
    torch.testing.assert_close(terms["latent"], error)
    losses: list[dict[str, float]] = []
    train(config, tmp_path, observe=lambda progress: losses.append(progress.losses))
    for name in ("latent", "pixel"):
        assert losses[-1][name] < losses[0][name] / 2
    ours = load_first_stage(tmp_path / "model")
    assert isinstance(ours, TinyAutoencoder)
    assert ours.image_size == (16, 16)
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "model")
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(z).sample, ours.decode(z), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"autoencoder": None}, "or init; the recipe has none"),
        ({"vq": {}}, r"the recipe has \[autoencoder\] and \[vq\]"),
        ({"train": "decoder"}, 'train = "decoder" needs init'),
        ({"codebook": {"decay": 0.5}}, r"\[codebook\] is for a network \[vq\]"),
        ({"teacher": "FIRST"}, r"only a tiny first stage has one"),
        ({"autoencoder": None, "tiny": TINY}, r"\[tiny\] needs a teacher"),
        (
            {"autoencoder": None, "tiny": {}, "teacher": "FIRST"},
            "levels; the teacher's fact",
        ),
        (
            {"autoencoder": None, "tiny": {**TINY, "latent_channels": 3}, "teacher": "FIRST"},
            "tiny.latent_channels is 3, but the teacher has 4",
        ),
        ({"init": "FIRST", "autoencoder": {"norm_num_groups": 2}}, "has to be left out: init ="),
        ({"init": "nowhere/at-all"}, "init: "),
        ({"init": "PUBLISHED", "autoencoder": None}, "lacks quant_conv or post_quant_conv"),
        ({"autoencoder": None, "vq": {"in_channels": 1}}, "vq.in_channels has to be 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], said: str, recipe: Recipe, first_stage: Path, published: Path
):
    places = {"FIRST": str(first_stage), "PUBLISHED": str(published)}
    given = {
        key: places.get(value, value) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UndustError, match=said):
        recipe(**given)


# Faults of runs that really have them


def test_a_scale_that_does_not_fit_is_told(
    published: Path, recipe: Recipe, write_recipe: Callable[[str], Path], tmp_path: Path
):
    """To whom trains the decoder alone, and to whom trains a diffusion model on its latents."""
    fields = {**read_json(published / "config.json"), "scaling_factor": 90.0}
    save_component(published, Autoencoder(AutoencoderConfig.read(fields)))
    config = recipe(autoencoder=None, init=str(published), train="decoder", run={"steps": 1})
    told = [line for line in notes(config, tmp_path / "out") if "have a deviation of" in line]
    assert len(told) == 1
    assert str(published) in told[0]
    diffusion = kinds.read(write_recipe("diffusion"), [f"first_stage={published}"])
    _, found = prepare(diffusion, tmp_path / "diffusion")
    assert [line for line in found if "have a deviation of" in line]


def test_a_discriminator_that_never_starts_is_told(recipe: Recipe, tmp_path: Path):
    config = recipe("vq", discriminator={"start": 50_001}, run={"steps": 2})
    told = notes(config, tmp_path)
    assert [line for line in told if "never starts" in line] == [
        "the discriminator never starts: discriminator.start is step 50,001, and the run ends at "
        "step 2; a share of the run does, such as 0.25"
    ]


def test_a_discriminator_that_has_won_is_told_once(recipe: Recipe, tmp_path: Path):
    """The decoder hardly moves, so that its pictures are told from real ones for good."""
    config = recipe(
        discriminator={"weight": 0.1, "start": 0, "layers": 1, "channels": 16, "norm": "group"}
        | {"learning_rate": 2e-2},
        optimizer={"learning_rate": 1e-9},
        run={"steps": 125, "log_every": 25, "checkpoint_every": 1000, "sample_every": 1000},
    )
    told = [line for line in notes(config, tmp_path) if "the discriminator has won" in line]
    assert len(told) == 1


def test_a_collapsed_posterior_is_told_once(recipe: Recipe, tmp_path: Path):
    config = recipe(
        loss={"kl": 100.0},
        optimizer={"learning_rate": 1e-2},
        run={"steps": 40, "checkpoint_every": 1000},
    )
    told = [line for line in notes(config, tmp_path) if "the posterior has collapsed" in line]
    assert len(told) == 1
    assert "a smaller loss.kl than 100 keeps more" in told[0]


def test_a_collapsed_codebook_is_told_once(recipe: Recipe, tmp_path: Path):
    """Random codes that are never moved: the latents are all nearest to a few of them."""
    config = recipe(
        "vq",
        vq={"num_vq_embeddings": 512},
        codebook={"update": "gradient", "revive_after": 0},
        discriminator=None,
        run={"steps": 20, "checkpoint_every": 1000},
    )
    told = [line for line in notes(config, tmp_path) if "the codebook has collapsed" in line]
    assert len(told) == 1


def test_a_run_without_faults_tells_nothing(recipe: Recipe, tmp_path: Path):
    told = notes(recipe("vq", run={"steps": 8}), tmp_path)
    assert not [line for line in told if not line.startswith("validation loss")]
