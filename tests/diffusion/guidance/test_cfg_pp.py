from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undust.diffusion.guidance import CFGPlusPlus, ClassifierFree
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError

SIGMAS = torch.tensor([9.0, 5.0, 2.0, 0.4, 0.0], dtype=torch.float64)


def published(world, start: Tensor, strength: float) -> Tensor:
    """Chung et al. 2024, algorithm 2, as it stands: in x_t = √ᾱ·x0 + √(1 − ᾱ)·n, with ε."""
    kept = 1 / (1 + SIGMAS**2)  # ᾱ of each level
    x = start * kept[0].sqrt()
    for here, there, sigma in zip(kept[:-1], kept[1:], SIGMAS[:-1], strict=True):
        world.x, world.sigma = x / here.sqrt(), sigma.expand(len(x))
        conditional, unconditional = (
            (x - here.sqrt() * world.exact(world.mean(seed))) / (1 - here).sqrt() for seed in (1, 2)
        )
        guided = unconditional + strength * (conditional - unconditional)
        x0 = (x - (1 - here).sqrt() * guided) / here.sqrt()
        x = there.sqrt() * x0 + (1 - there).sqrt() * unconditional
    return x


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6, 1.0])
def test_eulers_method_with_these_scales_is_the_published_algorithm(
    bent, sampler: str, strength: float
):
    start = bent.x.double() * 9
    guided = ClassifierFree(bent.branch(1), bent.branch(2), CFGPlusPlus(strength, SIGMAS))
    *_, last = SAMPLERS[sampler](guided, start, SIGMAS, lambda *_: start)
    torch.testing.assert_close(last.x, published(bent, start, strength))


def test_other_samplers_are_not_promised_it(bent):
    start = bent.x.double() * 9
    guided = ClassifierFree(bent.branch(1), bent.branch(2), CFGPlusPlus(0.6, SIGMAS))
    *_, last = SAMPLERS["dpmpp-2m"](guided, start, SIGMAS, lambda *_: start)
    assert (last.x - published(bent, start, 0.6)).abs().max() > 0.01


def test_the_last_step_is_guided_by_the_strength_alone():
    assert CFGPlusPlus(0.6, SIGMAS).table.values[-1] == 0.6


def test_strengths_that_make_no_sense():
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UndustError, match=r"cfg\+\+: .* is outside 0"):
            CFGPlusPlus(strength, SIGMAS)
