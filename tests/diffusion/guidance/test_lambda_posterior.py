"""Posterior sampling towards known views, against a loop with autograd."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from undust.diffusion import lambda_tables
from undust.diffusion.guidance import LambdaGuidance, PosteriorSampling
from undust.diffusion.lambda_tables import LambdaTable
from undust.diffusion.noise import PictureNoise, normal
from undust.diffusion.process import EDM
from undust.diffusion.samplers import SAMPLERS, corrected
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

SHAPE = (3, 2, 4, 5)  # frames, channels, height, width
SIGMAS = SCHEDULES["karras"](EDM(0.002, 700.0), 6)
VIEWS = normal(3, (0, 0, 0), SHAPE)
MASKS = (normal(4, (0, 0, 0), (3, 4, 5)) > -0.5).float()
CLAMP = 0.2


def level_of(x: Tensor, sigma: Tensor) -> Tensor:
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))


def network(x: Tensor, shift: float) -> Tensor:
    return torch.tanh(x + shift + 0.3 * x.mean(1, keepdim=True))


def parts(x: Tensor, sigma: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """c_skip·x and c_out·network, as in a prediction of v."""
    level = level_of(x, sigma)
    width = (1 + level**2).sqrt()
    return x / width**2, -level / width * network(x / width, shift)


def conditional(x: Tensor, sigma: Tensor) -> Tensor:
    return sum(parts(x, sigma, 0.0), torch.zeros_like(x))


def guided(x: Tensor, sigma: Tensor) -> Tensor:
    negative = sum(parts(x, sigma, 0.7), torch.zeros_like(x))
    return negative + 2 * (conditional(x, sigma) - negative)


def start(batch: int = 1) -> Tensor:
    return SIGMAS[0].float() * normal(8, (0, 0, 0), (batch, *SHAPE))


def drawn() -> PictureNoise:
    return PictureNoise([3], SHAPE)


def table() -> LambdaTable:
    return lambda_tables.search(SIGMAS, 3)


def known(**change: Any) -> LambdaGuidance:
    given = {"table": table(), "views": VIEWS, "masks": MASKS, "weight_clamp": CLAMP, **change}
    return LambdaGuidance(conditional, **given)


def published(x: Tensor, rate: float) -> Tensor:
    """The description of NVS-Solver's code, a frame at a time, with autograd."""
    for row, (sigma, sigma_next) in enumerate(pairwise(SIGMAS)):
        x = x.detach().requires_grad_()
        skip, out = parts(x, sigma.expand(1), 0.0)
        x0 = skip + out.detach()
        top = torch.zeros(SHAPE, dtype=torch.bool)
        top[0] = True
        for frame in (1, 2):
            valid = MASKS[frame].expand(SHAPE[1:]) == 1
            weight = max(table().weights[row, frame].item(), CLAMP)
            off = ((x0[0, frame] - VIEWS[frame]).abs() * valid).detach()
            ranked, invalid = off.flatten().sort().values, int((~valid).sum())
            cutoff = ranked[int(weight * (len(ranked) - invalid)) + invalid - 1]
            top[frame] = (off <= cutoff) & valid
        loss = (x0[0][top] - VIEWS[top]).square().mean()
        [gradient] = torch.autograd.grad(loss, x)
        x = x.detach() - gradient / gradient.std() * sigma.sqrt().float() * rate
        x0 = guided(x, sigma.expand(1))
        x = x0 + (sigma_next / sigma).float() * (x - x0)
    return x


@pytest.mark.parametrize("rate", [0.02, 1.0])
def test_a_run_is_that_of_the_published_loop(rate: float):
    correct = PosteriorSampling(known(), rate)
    *_, last = corrected(SAMPLERS["euler"], guided, start(), SIGMAS, drawn(), correct)
    torch.testing.assert_close(last.x, published(start(), rate), rtol=1e-4, atol=1e-5)
    free = published(start(), 0.0)
    assert (last.x - free).norm() > 1e-3 * free.norm()


def test_without_weight_or_rate_it_is_not_there_to_the_bit():
    nothing = LambdaTable(torch.zeros(6, 3).double(), SIGMAS[:-1])
    *_, own = SAMPLERS["euler"](guided, start(), SIGMAS, drawn())
    for correct in (
        PosteriorSampling(known(table=nothing, weight_clamp=0.0)),
        PosteriorSampling(known(), 0.0),
    ):
        *_, last = corrected(SAMPLERS["euler"], guided, start(), SIGMAS, drawn(), correct)
        assert torch.equal(last.x, own.x)


def test_numbers_that_are_not_valid_are_left_as_they_are():
    views = VIEWS.clone()
    views[1:] = views[1:].where(MASKS[1:, None] == 1, math.nan)
    moved = PosteriorSampling(known(views=views), 1.0)(start(), SIGMAS[:1].float())
    same = moved == start()
    assert bool(same[0, 1:][(MASKS[1:, None] == 0).expand(2, *SHAPE[1:])].all())
    assert not bool(same.all())


def test_a_film_of_a_batch_is_that_film_alone():
    both = start(2)
    together = PosteriorSampling(known())(both, SIGMAS[:1].float().expand(2))
    for place in range(2):
        alone = PosteriorSampling(known())(both[place : place + 1], SIGMAS[:1].float())
        assert torch.equal(together[place], alone[0])


@pytest.mark.parametrize("name", ["euler", "heun", "euler-ancestral", "dpm2"])
def test_single_steps_without_correction_are_the_samplers(name: str):
    own, same = (
        [(step.index, float(step.sigma), step.x) for step in steps]
        for steps in (
            SAMPLERS[name](guided, start(), SIGMAS, drawn()),
            corrected(SAMPLERS[name], guided, start(), SIGMAS, drawn(), lambda x, _: x),
        )
    )
    assert [step[:2] for step in own] == [step[:2] for step in same]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(own, same, strict=True))


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused(rate: float):
    with pytest.raises(UndustError, match="a learning rate of"):
        PosteriorSampling(known(), rate)
