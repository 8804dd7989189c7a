from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from orders import doubles, flow_order, weak_order
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.er_sde import SCALES, reach
from undust.errors import UndustError

PHI: dict[str, Callable[[float], float]] = {
    "ode": lambda s: s,
    "sde": lambda s: s**2,
    "er-sde": lambda s: s * (math.exp(s**0.3) + 10),
}


@given(scale=st.sampled_from(sorted(PHI)), bottom=st.floats(0.02, 5), ratio=st.floats(1.01, 100))
def test_what_the_derivatives_add_is_the_integral(scale: str, bottom: float, ratio: float):
    """φ(σ')·∫ (s − σ)^k/k! d(1/φ) from σ to σ', by parts: the last term holds ∫ ds/φ."""
    top, phi = bottom * ratio, PHI[scale]
    first = quad(lambda s: phi(bottom) / phi(s), bottom, top)[0]
    second = quad(lambda s: (s - top) * phi(bottom) / phi(s), bottom, top)[0]
    found = reach(SCALES[scale], doubles(top)[0], doubles(bottom)[0])
    width = bottom - top
    expected = width + first, width**2 / 2 + second
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9 * top**2)


@pytest.mark.parametrize(("order", "measured"), [(1, 1), (2, 2), (3, 2)])
def test_order_without_noise(order: int, measured: int):
    """The third one takes a difference between two levels for the slope at one of them.

    That is off by half a step's curvature, an error of second order; only the constant is smaller.
    """
    slope = flow_order("er-sde", (64, 128, 256), order=order, scale="ode")
    assert slope == pytest.approx(measured, abs=0.15)


@pytest.mark.parametrize("scale", ["sde", "er-sde"])
def test_weak_order(scale: str):
    order = SAMPLERS["er-sde"].order
    assert weak_order("er-sde", scale=scale) == pytest.approx(order, abs=0.15)


def test_other_scales_are_refused():
    with pytest.raises(UndustError, match="unknown scale 'er-sda'; did you mean 'er-sde'"):
        list(
            SAMPLERS["er-sde"](
                torch.zeros_like, torch.ones(1), doubles(1, 0), torch.zeros_like, scale="er-sda"
            )
        )
