"""What is known keeps to its own noise; the rest is as if nothing were known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undust.diffusion.guidance import ClassifierFree, KnownRegion
from undust.diffusion.noise import PictureNoise, normal
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

LEFT = torch.tensor([0.0, 0.0, 0.25, 1.0, 1.0]).expand(4, 5)
KNOWN = normal(9, (0, 0, 0), (1, 2, 4, 5)).double()
NOISE = normal(8, (0, 0, 0), (1, 2, 4, 5)).double()
SIGMAS = SCHEDULES["karras"](PROCESSES["scaled-linear"](), 6)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of N(½, 0.6²), each pixel by itself."""
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    kept = 0.36 / (0.36 + level**2)
    return kept * x + (1 - kept) * 0.5


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not SAMPLERS[name].stochastic])
def test_what_is_known_moves_straight_along_its_own_noise(name: str):
    """Under known + σ·n the flow's slope is n, and every method is exact where it is constant."""
    start = KNOWN + SIGMAS[0] * NOISE
    region = KnownRegion(gaussian, KNOWN, LEFT)
    for step in SAMPLERS[name](region, start, SIGMAS, lambda *_: NOISE):
        along = KNOWN + step.sigma * NOISE
        off = (step.x - along)[..., :2].abs().max() / along.abs().max()
        assert off < 1e-12, (name, step.index)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not SAMPLERS[name].adaptive])
def test_what_is_unknown_does_not_see_it(name: str):
    """Pixels that know nothing of one another: the others come out to the bit as without it."""
    start = KNOWN + SIGMAS[0] * NOISE
    ends: list[Tensor] = []
    for denoise in (gaussian, KnownRegion(gaussian, KNOWN, LEFT)):
        noise = PictureNoise([3], start.shape[1:])
        *_, last = SAMPLERS[name](denoise, start, SIGMAS, noise)
        ends.append(last.x)
    assert torch.equal(ends[0][..., 3:], ends[1][..., 3:])
    torch.testing.assert_close(ends[1][..., :2], KNOWN[..., :2], rtol=1e-12, atol=1e-12)


def test_a_share_of_each_in_between(bent):
    known, mask = bent.mean(3)[None], LEFT
    own = bent.branch(1)(bent.x, bent.sigma)
    answer = KnownRegion(bent.branch(1), known, mask)(bent.x, bent.sigma)
    torch.testing.assert_close(answer, known + mask * (own - known))
    assert torch.equal(answer[..., :2], known[..., :2].expand(3, -1, -1, -1))
    assert torch.equal(answer[..., 3:], own[..., 3:])


def test_each_picture_can_have_its_own(bent):
    known = torch.stack([bent.mean(seed) for seed in (4, 5, 6)])
    together = KnownRegion(bent.branch(1), known, LEFT)(bent.x, bent.sigma)
    for place in range(3):
        alone = KnownRegion(bent.branch(1), known[place : place + 1], LEFT)(bent.x, bent.sigma)
        assert torch.equal(together[place], alone[place])


def test_where_nothing_is_known_it_is_not_there_to_the_bit(bent):
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 5.0)
    region = KnownRegion(guided, torch.full((1, 2, 4, 5), torch.nan), torch.ones(4, 5))
    assert torch.equal(region(bent.x, bent.sigma), guided(bent.x, bent.sigma))
    assert bent.calls == [6, 6]


def test_where_all_is_known_it_is_that(bent):
    known = bent.mean(3)[None]
    answer = KnownRegion(bent.branch(1), known, torch.zeros(4, 5))(bent.x, bent.sigma)
    assert torch.equal(answer, known.expand_as(answer))


@pytest.mark.parametrize("shape", [(5, 4), (4,), (1, 4, 5), (2, 4, 5), (8, 10)])
def test_masks_of_another_shape(shape: tuple[int, ...]):
    with pytest.raises(UndustError, match=r"a mask of .* does not fit a latent of \[4, 5\]"):
        KnownRegion(gaussian, KNOWN, torch.ones(shape))


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_masks_of_other_values(value: float):
    mask = LEFT.clone()
    mask[1, 1] = value
    with pytest.raises(UndustError, match=r"known region: a mask has to lie in 0 … 1"):
        KnownRegion(gaussian, KNOWN, mask)
