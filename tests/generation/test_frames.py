"""Films: the loop, the noise and a network's denoiser take latents [B, F, C, h, w] as they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from painter import ColourPainter
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError
from undust.generation import loop
from undust.networks.conditioning import CallOptions, Conditioning
from undust.recipe.recipe import Recipe

FRAMES, HEIGHT, WIDTH = 5, 4, 6


class SpaceTimeNetwork(nn.Module):
    """Convolutions over frames, rows and columns, moved by the time step and a colour."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 8, 3, padding=1)
        self.last = nn.Conv3d(8, 3, 3, padding=1)

    def forward(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, options: CallOptions | None = None
    ) -> Tensor:
        assert x.ndim == 5 and cond.text is not None
        moved = x + cond.text[:, :1, :, None, None] + timestep.reshape(-1, 1, 1, 1, 1) / 1000
        return self.last(torch.tanh(self.first(moved.transpose(1, 2)))).transpose(1, 2)


class FilmPainter(ColourPainter):
    """A model of films, whose frames come out side by side."""

    process = PROCESSES["scaled-linear"]()

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = SpaceTimeNetwork().requires_grad_(False)
        self.denoise = NetworkDenoiser(network, self.process, PREDICTIONS["v_prediction"])

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (FRAMES, 3, height, width)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.permute(0, 2, 3, 1, 4).flatten(3)


def recipe(seed: int = 1, **fields: Any) -> Recipe:
    size = {"width": WIDTH, "height": HEIGHT, "steps": 3, "guidance": 3.0}
    return Recipe.read({"prompt": "red", "seed": seed, **size, **fields})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_film_of_a_batch_is_the_film_alone(sampler: str):
    model = FilmPainter()
    *_, both = loop.sample_batch(model, [recipe(1, sampler=sampler), recipe(2, sampler=sampler)])
    assert both.x.shape == both.x0.shape == (2, FRAMES, 3, HEIGHT, WIDTH)
    assert both.x.isfinite().all()
    if not SAMPLERS[sampler].adaptive:  # those are run one by one
        *_, alone = loop.sample_batch(model, [recipe(2, sampler=sampler)])
        torch.testing.assert_close(both.x[1:], alone.x, rtol=1e-3, atol=1e-3)


def test_each_frame_has_noise_of_its_own():
    *_, last = loop.sample_batch(FilmPainter(), [recipe(steps=1, sampler="ddim")])
    frames = last.x[0]
    assert all(not torch.equal(a, b) for a, b in pairwise(frames))


def test_noise_of_a_film_is_one_picture_or_a_batch_and_never_folded():
    model, asked = FilmPainter(), recipe(sampler="euler")
    noise = torch.randn(FRAMES, 3, HEIGHT, WIDTH, generator=torch.manual_seed(0))
    *_, one = loop.sample_batch(model, [asked], noise)
    *_, same = loop.sample_batch(model, [asked], noise[None])
    assert torch.equal(one.x, same.x)
    for wrong in (noise[0], noise[None, None], noise[:3], torch.stack([noise, noise])):
        with pytest.raises(UndustError, match=r"has to be \[1, 5, 3, 4, 6\]"):
            next(loop.sample_batch(model, [asked], wrong))
