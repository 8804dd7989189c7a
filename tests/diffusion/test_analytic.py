"""The closed forms themselves, against numerical integration and automatic differentiation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from analytic import Mixture, flow
from undust.diffusion.noise import normal


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.4, 0.6))
LINE = Mixture(doubles(0.3, 0.7), doubles([-1.0], [1.0]), doubles(0.2, 0.4))


def test_the_denoiser_is_the_mean_of_the_posterior():
    """Bayes' rule by quadrature on a line: E[x0 | x] = ∫ x0 q(x0) N(x; x0, σ²) dx0 / ∫ …"""
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    clean = LINE.log_density(grid[:, None], torch.full((len(grid),), 1e-9).double()).exp()
    for x, sigma in [(0.4, 0.3), (-2.0, 1.0), (3.0, 5.0)]:
        seen = (-((grid - x) ** 2) / (2 * sigma**2)).exp()
        expected = (grid * clean * seen).sum() / (clean * seen).sum()
        found = LINE(doubles([x]), doubles(sigma))
        torch.testing.assert_close(found[0, 0], expected, rtol=1e-8, atol=1e-8)


def test_the_density_sums_to_one():
    grid = torch.linspace(-60, 60, 40_001, dtype=torch.float64)
    for sigma in (0.01, 1.0, 6.0):
        density = LINE.log_density(grid[:, None], torch.full((len(grid),), sigma).double()).exp()
        assert abs(density.sum() * (grid[1] - grid[0]) - 1) < 1e-8


def test_the_score_is_the_gradient_of_the_log_density():
    """Tweedie's formula (Efron 2011, eq. 1.4): ∇ log q = (E[x0 | x] − x)/σ²."""
    x = (3 * normal(1, (0, 0, 0), (50, 2)).double()).requires_grad_()
    sigma = torch.linspace(0.05, 8, 50, dtype=torch.float64)
    with torch.enable_grad():
        (score,) = torch.autograd.grad(MIXTURE.log_density(x, sigma).sum(), x)
    expected = (MIXTURE(x, sigma) - x) / sigma[:, None] ** 2
    torch.testing.assert_close(score, expected.detach())


def test_moments_are_those_of_the_density():
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    density = LINE.log_density(grid[:, None], torch.full((len(grid),), 1e-9).double()).exp()
    density = density / density.sum()
    mean, covariance = LINE.moments()
    torch.testing.assert_close(mean[0], (density * grid).sum())
    torch.testing.assert_close(covariance[0, 0], (density * (grid - mean[0]) ** 2).sum())


def test_the_flow_of_a_gaussian():
    """The distance to the mean shrinks as the deviation √(s² + σ²) does."""
    gaussian = Mixture(doubles(1.0), doubles([0.5, -1.0]), doubles(0.5))
    start = 10 * normal(2, (0, 0, 0), (32, 2)).double()
    mean = gaussian.means[0]
    end = mean + (start - mean) * math.sqrt((0.25 + 0.01) / (0.25 + 100))
    torch.testing.assert_close(flow(gaussian, start, 10, 0.1, 400), end, rtol=1e-9, atol=1e-9)
