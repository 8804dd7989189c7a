"""From latents back to noise and to likelihood, with a denoiser whose answers are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from painter import ColourPainter
from undust.diffusion.noise import normal
from undust.diffusion.process import PROCESSES, Process
from undust.errors import UndustError
from undust.generation import inversion, loop
from undust.networks.conditioning import CallOptions, Conditioning
from undust.recipe.recipe import Recipe


@dataclass
class GaussianPainter(ColourPainter):
    """Knows that every latent is drawn from a Gaussian of mean 0 and variance 1."""

    process: Process

    def denoise(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        assert len(x) == len(sigma) == len(cond)
        return x / (1 + sigma**2)[:, None, None, None]


PAINTER = GaussianPainter(PROCESSES["scaled-linear"]())
LATENTS = normal(3, (0, 0, 0), (2, 3, 2, 4))


def batch(steps: int = 20) -> list[Recipe]:
    fields = {"prompt": "red", "width": 4, "height": 2, "guidance": 1, "sampler": "euler"}
    return [Recipe.read({**fields, "steps": steps, "seed": seed}) for seed in (1, 2)]


def test_painting_from_the_noise_gives_the_latents_back():
    *_, last = inversion.invert(PAINTER, batch(), LATENTS, iterations=100)
    noise = inversion.noise(PAINTER, last)
    *_, painted = loop.sample_batch(PAINTER, batch(), noise)
    torch.testing.assert_close(painted.x, LATENTS, rtol=1e-4, atol=1e-5)


def test_the_noise_of_a_gaussian_is_the_latent_itself():
    """Its flow keeps x / √(1 + σ²), which at both ends is of variance 1: Euler nears that."""
    errors: list[float] = []
    for steps in (100, 200, 400):
        *_, last = inversion.invert(PAINTER, batch(steps), LATENTS, iterations=100)
        errors.append((inversion.noise(PAINTER, last) - LATENTS).abs().max().item())
    assert errors[0] > 1.6 * errors[1] > 2.56 * errors[2]
    assert errors[2] < 0.05


def test_every_step_is_told():
    steps = list(inversion.invert(PAINTER, batch(5), LATENTS))
    assert [(step.index, step.total) for step in steps] == [(k, 5) for k in range(5)]
    assert [step.sigma for step in steps] == sorted(step.sigma for step in steps)
    assert steps[-1].sigma == pytest.approx(PAINTER.process.sigma_max)
    assert steps[0].x.shape == steps[0].decode(steps[0].x0).shape == LATENTS.shape


def test_bits_of_a_gaussian():
    """The latents at σ_min have the variance 1 + σ_min²; the trace is the same for every probe."""
    found = inversion.bits_per_dimension(PAINTER, batch(), LATENTS, steps=60, probes=1, seed=0)
    variance = 1 + PAINTER.process.sigma_min**2
    nats = 0.5 * LATENTS.double().square().mean((1, 2, 3)) / variance
    nats += 0.5 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(found, nats / math.log(2), rtol=0, atol=1e-3)


def test_what_cannot_be():
    with pytest.raises(UndustError, match="iterations: 0 is too few"):
        list(inversion.invert(PAINTER, batch(), LATENTS, iterations=0))
    with pytest.raises(UndustError, match="probes: 0 is too few"):
        inversion.bits_per_dimension(PAINTER, batch(), LATENTS, steps=2, probes=0, seed=0)
