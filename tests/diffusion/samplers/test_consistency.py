from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from analytic import Mixture
from orders import DEVIATION, doubles, variance
from undust.diffusion.noise import normal, uniform
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError

LINE = Mixture(doubles(0.3, 0.7), doubles([-1.0], [1.0]), doubles(0.2, 0.4))


def below(x: Tensor, sigma: Tensor) -> Tensor:
    """The share of LINE's samples, with noise of level σ [B], that lie below x [B, 1]."""
    spread = (LINE.deviations**2 + sigma[:, None] ** 2).sqrt()
    normed = (x - LINE.means[:, 0]) / (spread * math.sqrt(2))
    return (LINE.weights * (1 + normed.erf()) / 2).sum(1, keepdim=True)


def consistency(x: Tensor, sigma: Tensor) -> Tensor:
    """Where the flow from x at σ ends: on a line nobody overtakes, so it keeps the share below."""
    share = below(x, sigma)
    low, high = torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(50):
        middle = (low + high) / 2
        short = below(middle, torch.zeros_like(sigma)) < share
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize(("name", "options"), [("lcm", {}), ("tcd", {"gamma": 1.0})])
def test_a_distilled_model_gives_the_mixture_in_few_steps(name: str, options: dict[str, Any]):
    count, top = 4000, 20.0
    part = (uniform(3, (0, 0, 0), (count, 1)) > LINE.weights[0]).long()
    spread = (LINE.deviations[part] ** 2 + top**2).sqrt()
    x = LINE.means[part, 0] + spread * normal(4, (0, 0, 0), (count, 1)).double()
    sigmas = doubles(top, 2.0, 0.5, 0.0)
    draws = iter(range(9))
    steps = SAMPLERS[name](
        consistency, x, sigmas, lambda *_: normal(5, (next(draws), 0, 0), (count, 1)), **options
    )
    *_, last = steps
    grid = doubles(*(i / 10 for i in range(-20, 21)))
    expected = below(grid[:, None], torch.zeros_like(grid))[:, 0]
    found = (last.x <= grid).double().mean(0)
    assert (found - expected).abs().max() < 2 / math.sqrt(count)  # Kolmogorov: 1.63 in 99 of 100


def test_an_ordinary_denoiser_does_not_give_its_own_distribution():
    """Order 0: the share k = s²/(s² + σ²) of x is taken, σ² put on it, in turn, however often.

    That is v → k²·(v + σ²), which stands still at s⁴/(2s² + σ²) ≤ s²/2: half the variance.
    """
    level = 0.3
    sigmas = torch.linspace(level + 1e-6, level, 200, dtype=torch.float64)
    ends = variance("lcm", torch.cat([sigmas, doubles(0.0)]))
    still = DEVIATION**4 / (2 * DEVIATION**2 + level**2)
    assert ends == pytest.approx(still, rel=1e-4)
    assert ends < 0.5 * DEVIATION**2


def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(x - sigma[:, None] / 3)


def test_gamma_goes_from_euler_to_lcm():
    x, sigmas = doubles([1.0], [-2.0]), doubles(4.0, 2.0, 1.0, 0.0)

    def ends(name: str, **options: Any) -> Tensor:
        *_, last = SAMPLERS[name](smooth, x, sigmas, lambda s, _: s + torch.ones_like(x), **options)
        return last.x

    assert torch.equal(ends("tcd", gamma=0.0), ends("euler"))
    assert torch.equal(ends("tcd", gamma=1.0), ends("lcm"))
    for gamma in (-0.1, 1.1, math.nan):
        with pytest.raises(UndustError, match=r"^gamma: "):
            ends("tcd", gamma=gamma)
