"""Offset noise and input perturbation: their moments, and the loss that they enter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import DISCRETE
from undust.training.data import RandomStream, SampleOrder
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.noise import NoiseChangesConfig, training_noise

BATCH = SampleOrder([[n] for n in range(400)], 0).batch(0, 400)
SHAPE = (3, 8, 8)


def test_without_changes_it_is_the_noise_of_earlier_runs():
    noise, given = training_noise(NoiseChangesConfig(), BATCH, SHAPE)
    assert torch.equal(noise, BATCH.normal(RandomStream.NOISE, SHAPE))
    assert given is noise


def test_offset_noise_is_shared_by_a_channel_and_seen_by_the_target():
    """Of a channel's mean the variance is offset² + 1/64, of the pixels around it 1 − 1/64."""
    noise, given = training_noise(NoiseChangesConfig(offset=0.5), BATCH, SHAPE)
    assert given is noise
    means = noise.mean((2, 3))
    assert (means.var() - (0.25 + 1 / 64)).abs() < 0.03
    assert ((noise - means[:, :, None, None]).var() - (1 - 1 / 64)).abs() < 0.01
    correlation = torch.corrcoef(means.T) - torch.eye(3)
    assert correlation.abs().max() < 0.15  # the channels' offsets are independent


def test_perturbation_is_in_the_input_alone():
    """y = √ᾱ·x0 + √(1 − ᾱ)·(ε + γ·ξ), and the target is ε (Ning et al. 2023, algorithm 1)."""
    noise, given = training_noise(NoiseChangesConfig(perturbation=0.1), BATCH, SHAPE)
    plain, _ = training_noise(NoiseChangesConfig(), BATCH, SHAPE)
    assert torch.equal(noise, plain)
    assert ((given - noise).std() - 0.1).abs() < 2e-3
    process = DISCRETE["scaled-linear"]()
    sigma, x0 = process.sigmas[[10, 500]], normal(0, (0, 0, 0), (2, *SHAPE))
    left = process.alphas_cumprod[[10, 500]].float().reshape(2, 1, 1, 1)
    for name, target in (
        ("epsilon", noise[:2]),
        ("v_prediction", left.sqrt() * noise[:2] - (1 - left).sqrt() * x0),
    ):

        def network(x, timestep, cond, target=target):
            expected = left.sqrt() * x0 + (1 - left).sqrt() * given[:2]
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
            return target

        denoise = NetworkDenoiser(network, process, PREDICTIONS[name])
        loss = denoise.loss(x0, noise[:2], sigma, None, input_noise=given[:2])
        assert loss.max() < 1e-10


def test_a_recipe_changes_the_training_loss_but_not_the_validation_loss(
    diffusion_recipe: Callable[..., DiffusionConfig], tmp_path: Path
):
    changed = ("noise.offset=0.3", "noise.perturbation=0.2")
    plain, own = (
        DiffusionTask(diffusion_recipe(*changes).complete(), tmp_path / str(len(changes)))
        for changes in ((), changed)
    )
    for task in (plain, own):
        for parameter in task.modules.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    batch = plain.order.batch(0, 4)
    with torch.no_grad():
        assert plain.losses(batch)["loss"] != own.losses(batch)["loss"]
        for task in (plain, own):
            task.modules.eval()
        assert plain.losses(batch)["loss"] == own.losses(batch)["loss"]
