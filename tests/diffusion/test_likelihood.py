"""Likelihoods of distributions whose density is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from analytic import Mixture
from undust.diffusion.likelihood import bits_per_dimension, isotropic, log_likelihood
from undust.diffusion.noise import normal
from undust.errors import UndustError


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


GAUSSIAN = Mixture(doubles(1.0), doubles([0.0] * 6), doubles(0.7))
MIXTURE = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.4, 0.6))
BOTTOM, TOP = 0.01, 40.0


def falling(steps: int) -> Tensor:
    return torch.linspace(math.log(TOP), math.log(BOTTOM), steps + 1, dtype=torch.float64).exp()


def levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=torch.float64)


@pytest.mark.parametrize("probes", [None, 1])
def test_a_gaussian_is_exact(probes: int | None):
    """Its Jacobian is a multiple of one, for which a single probe is exact too."""
    x = normal(1, (0, 0, 0), (20, 6)).double()
    found = log_likelihood(GAUSSIAN, x, falling(80), isotropic(math.hypot(0.7, TOP)), probes=probes)
    expected = GAUSSIAN.log_density(x, levels(x, BOTTOM))
    assert (bits_per_dimension(found - expected, 6)).abs().max() < 1e-4


def test_a_mixture_is_exact_with_every_direction():
    x = 2 * normal(2, (0, 0, 0), (40, 2)).double()
    prior = lambda x: MIXTURE.log_density(x, levels(x, TOP))  # noqa: E731
    expected = MIXTURE.log_density(x, levels(x, BOTTOM))
    errors = [
        (log_likelihood(MIXTURE, x, falling(n), prior, probes=None) - expected).abs().mean()
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 1e-5
    for error, half in pairwise(errors):
        assert math.log2(error / half) > 3.5  # Runge-Kutta's fourth order


def test_hutchinsons_estimate_has_the_exact_mean():
    """On the flow's divergence itself: independent probes average to the trace."""
    x = 2 * normal(3, (0, 0, 0), (8, 2)).double()
    prior = isotropic(math.hypot(1, TOP))
    exact = log_likelihood(MIXTURE, x, falling(8), prior, probes=None)
    draws = torch.stack(
        [log_likelihood(MIXTURE, x, falling(8), prior, key=key) for key in range(64)]
    )
    error = (draws.mean(0) - exact).abs()
    assert bool((error <= 4 * draws.std(0) / math.sqrt(64) + 1e-9).all())
    assert draws.std(0).max() > 1e-3  # it is an estimate
    many = log_likelihood(MIXTURE, x, falling(8), prior, probes=64)
    assert (many - exact).abs().mean() < (draws[0] - exact).abs().mean()


def test_isotropic_is_torchs_normal():
    x = normal(4, (0, 0, 0), (5, 3, 2)).double()
    expected = torch.distributions.Normal(0, 2.5).log_prob(x).sum((1, 2))
    torch.testing.assert_close(isotropic(2.5)(x), expected)


def test_a_unit_gaussian_takes_two_bits():
    """Its entropy is log2 √(2πe) bits a number."""
    x = normal(5, (0, 0, 0), (2000, 4)).double()
    bits = bits_per_dimension(isotropic(1.0)(x), 4).mean()
    assert bits == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), abs=0.02)


def test_what_cannot_be_is_refused():
    x = torch.zeros(1, 6, dtype=torch.float64)
    with pytest.raises(UndustError, match="the last one has to be above 0"):
        log_likelihood(GAUSSIAN, x, doubles(1.0, 0.0), isotropic(1.0))
    with pytest.raises(UndustError, match="probes: 0 is too few"):
        log_likelihood(GAUSSIAN, x, doubles(1.0, 0.5), isotropic(1.0), probes=0)
