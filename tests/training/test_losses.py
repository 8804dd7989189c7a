"""The loss terms against closed forms and independent formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from undust.training.losses import (
    adaptive_weight,
    gradient_difference,
    hinge,
    negative_log_likelihood,
    straight_through,
)


def ramp(slope: float) -> torch.Tensor:
    """A picture [1, 3, 16, 16] that rises by `slope` from column to column."""
    return (slope * torch.arange(16.0)).expand(1, 3, 16, 16)


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
def test_a_ramp_costs_its_slope_which_doubles_with_every_halving(scales: int):
    """Halved, the columns lie two old columns apart: slope·(1 + 2 + 4 + …)."""
    expected = 0.25 * (2**scales - 1)
    assert gradient_difference(ramp(0.5), ramp(0.25), scales).item() == pytest.approx(expected)
    turned = gradient_difference(ramp(0.5).mT, ramp(0.25).mT, scales).item()
    assert turned == pytest.approx(expected)


def test_brightness_alone_costs_nothing():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert gradient_difference(x, x, 3).item() == 0
    assert gradient_difference(x, x + 0.3, 3).item() == pytest.approx(0, abs=1e-6)


def test_one_step_edge_costs_one_column_of_gradients():
    """A wrong step of height 1 between two of 16 columns: one of 15 horizontal gradients."""
    x = torch.zeros(1, 3, 16, 16)
    y = x.clone()
    y[..., 8:] = 1
    assert gradient_difference(x, y, 1).item() == pytest.approx(1 / 15)


def test_scales_below_two_pixels_are_left_out():
    x, y = torch.zeros(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    assert gradient_difference(x, y, 2).item() == gradient_difference(x, y, 20).item()
    assert gradient_difference(x[..., :1], y[..., :1], 3).item() == 0


def test_the_learned_variance_is_that_of_the_likelihood():
    """Up to constants, of Laplace's distribution with the scale exp(v); its minimum is at log r."""
    error = torch.tensor(0.37, dtype=torch.float64)
    v = torch.tensor(-0.6, dtype=torch.float64, requires_grad=True)
    laplace = torch.distributions.Laplace(torch.zeros_like(error), v.exp())
    expected = -laplace.log_prob(error) - np.log(2)
    torch.testing.assert_close(negative_log_likelihood(error, v), expected)
    best = error.log().requires_grad_()
    negative_log_likelihood(error, best).backward()
    assert best.grad.item() == pytest.approx(0, abs=1e-15)


def test_hinge():
    chance = np.random.default_rng(0)
    real, fake = 2 * chance.standard_normal((2, 3, 1, 5, 4))
    expected = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    found = hinge(torch.from_numpy(real), torch.from_numpy(fake))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert hinge(torch.zeros(3), torch.zeros(3)) == 1
    assert hinge(torch.full((3,), 1.5), torch.full((3,), -1.5)) == 0


def test_the_codes_pass_the_gradient_straight_to_the_latents():
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    codes = torch.randn_like(z).requires_grad_()
    out = straight_through(z, codes)
    torch.testing.assert_close(out, codes)
    towards = torch.randn_like(z)
    (out * towards).sum().backward()
    assert torch.equal(z.grad, towards)
    assert codes.grad is None


@pytest.mark.parametrize("scale", [1.0, 1e-9, 0.0])
def test_the_adaptive_weight_by_hand(scale: float):
    """‖∇nll‖/(‖∇g‖ + 1e-4) at the last of two layers y = W·tanh(x), at most 1e4."""
    generator = torch.Generator().manual_seed(0)
    x, target, towards = (
        torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    last = nn.Linear(4, 4, bias=False).double()
    hidden = x.tanh()
    y = last(hidden)
    likelihood, adversarial = (y - target).square().mean(), scale * (y * towards).mean()
    # d mean((y − t)²)/dW = 2/n (y − t)ᵀ h, and d mean(y·c)/dW = 1/n cᵀ h.
    of_likelihood = (2 / y.numel() * (y - target).T @ hidden).norm()
    of_adversarial = (scale / y.numel() * towards.T @ hidden).norm()
    expected = min(float(of_likelihood.detach() / (of_adversarial + 1e-4)), 1e4)
    found = adaptive_weight(likelihood, adversarial, last.weight)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert not found.requires_grad
    assert last.weight.grad is None
    (likelihood + found * adversarial).backward()  # both graphs are still there


def test_the_adaptive_weight_is_bounded():
    last = torch.ones(2, requires_grad=True)
    assert adaptive_weight(1e3 * last.sum(), 0 * last.sum(), last) == 1e4
