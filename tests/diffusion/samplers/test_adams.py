from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from convergence import falling
from orders import doubles, flow_order
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.adams import mean, moments
from undust.errors import UndustError


@given(rate=st.floats(-30, 30))
def test_moments_are_the_integrals(rate: float):
    def integral(power: int) -> float:
        return quad(lambda s: s**power * math.exp(rate * (s - 1)), 0, 1, epsabs=0)[0]

    expected = [integral(power) / integral(0) for power in range(4)]
    assert moments(rate, 4) == pytest.approx(expected, rel=1e-9)


@given(
    rate=st.floats(-3, 3),
    lengths=st.lists(st.floats(0.3, 3), min_size=3, max_size=3),
    polynomial=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
def test_the_mean_of_a_polynomial_is_exact(
    rate: float, lengths: list[float], polynomial: list[float]
):
    def value(place: float) -> float:
        return sum(factor * place**power for power, factor in enumerate(polynomial))

    end, start, before = 1.0, 1.0 - lengths[0], 1.0 - lengths[0] - lengths[1]
    places = [start, before, before - lengths[2]]
    answers = [(place, doubles(value(place))) for place in places]
    weight = quad(lambda s: math.exp(rate * s), start, end)[0]
    expected = quad(lambda s: value(s) * math.exp(rate * s), start, end)[0] / weight
    assert mean(answers, start, end, rate).item() == pytest.approx(expected, abs=1e-8)


def drifts(estimate: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser whose answer depends on λ alone."""
    return lambda x, sigma: estimate(-sigma.log())[:, None].expand_as(x)


SIGMAS = falling(3.0, 0.2, 8)


def exact(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The solution of dx/dλ = λ² − x."""
    start, end = -sigma.log(), -sigma_next.log()
    return (x - start**2 + 2 * start - 2) * (sigma_next / sigma) + end**2 - 2 * end + 2


def test_third_order_means_that_a_parabola_is_followed_exactly():
    """Once it has three answers."""
    x = torch.full((1, 1), 2.0, dtype=torch.float64)
    for step in SAMPLERS["dpmpp-3m"](drifts(torch.square), x, SIGMAS, torch.zeros_like):
        if step.index >= 2:
            true = exact(x, SIGMAS[step.index], step.sigma)
            torch.testing.assert_close(step.x, true, rtol=0, atol=1e-13)
        x = step.x


def test_deis_follows_noise_that_is_a_polynomial():
    """Order k: the noise (x − x0)/σ as λ^(k−1), after k steps; x = x₀ + ∫ n dσ."""
    for order in (1, 2, 3):
        x = torch.full((1, 1), 2.0, dtype=torch.float64)

        def denoise(x: Tensor, sigma: Tensor, power: int = order - 1) -> Tensor:
            return x - (sigma * (-sigma.log()) ** power)[:, None]

        for step in SAMPLERS["deis"](denoise, x, SIGMAS, torch.zeros_like, order=order):
            area = quad(
                lambda s, power=order - 1: (-math.log(s)) ** power,
                SIGMAS[step.index].item(),
                step.sigma.item(),
            )[0]
            if step.index >= order - 1:
                torch.testing.assert_close(step.x, x + area, rtol=0, atol=1e-12)
            x = step.x


@pytest.mark.parametrize(("order", "measured"), [(1, 1), (2, 2), (3, 2)])
def test_order_of_deis(order: int, measured: int):
    """Its first step is Euler's: with order 3, one error of second order is left from there."""
    assert flow_order("deis", order=order) == pytest.approx(measured, abs=0.15)


def test_the_third_order_starts_with_two_calls():
    calls: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma[0].item())
        return x / 2

    sigmas = doubles(4.0, 2.0, 1.0, 0.0)
    list(SAMPLERS["dpmpp-3m"](denoise, torch.ones(1, 1).double(), sigmas, torch.zeros_like))
    assert calls == [4.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("order", [0, 4])
def test_other_orders_are_refused(order: int):
    with pytest.raises(UndustError, match=f"^order: {order} is outside 1 … 3"):
        list(
            SAMPLERS["deis"](
                torch.zeros_like, torch.ones(1), doubles(1, 0), lambda *_: 0, order=order
            )
        )
