"""What holds for every process, and what tells the continuous ones apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from processes import BUILT
from undust.diffusion.noise import normal
from undust.diffusion.process import (
    DISCRETE,
    EDM,
    VE,
    VP,
    ContinuousVP,
    Flow,
    Process,
    SubVP,
)
from undust.diffusion.process.base import SIGMA_INF
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

ALL: dict[str, Process] = {**BUILT, "svd": EDM(lowest=0.002, highest=700.0, sigma_data=1.0)}
EVERY = pytest.mark.parametrize("process", [pytest.param(p, id=name) for name, p in ALL.items()])


def times(process: Process, count: int = 41) -> Tensor:
    """Times inside the span; in a discrete process none at which two pieces meet."""
    first, last = process.time_range
    share = torch.linspace(0.0123, 0.9871, count, dtype=torch.float64)
    found = first + (last - first) * share
    return found + 0.37 * (found == found.round()) if isinstance(process, VP) else found


def slope(value: Tensor, time: Tensor) -> Tensor:
    return (
        torch.autograd.grad(value.sum(), time)[0] if value.requires_grad else torch.zeros_like(time)
    )


@EVERY
def test_f_and_g_are_the_derivatives_of_alpha_and_the_deviation(process: Process):
    """f = d log α/dt and g² = ds²/dt − 2f·s² (Särkkä & Solin 2019, eq. 6.2), by autograd."""
    time = times(process).requires_grad_()
    alpha, deviation = process.alpha(time), process.std(time)
    f, g = process.f(time), process.g(time)
    torch.testing.assert_close(f, slope(alpha.log(), time), rtol=1e-7, atol=1e-12)
    expected = slope(deviation**2, time) - 2 * f * deviation**2
    torch.testing.assert_close(g**2, expected, rtol=1e-7, atol=1e-12)
    # The same in the one coordinate: g² = α²·dσ²/dt.
    expected = alpha**2 * slope(process.sigma(time) ** 2, time)
    torch.testing.assert_close(g**2, expected, rtol=1e-7, atol=1e-12)


@EVERY
def test_sigma_is_the_deviation_over_alpha_and_time_its_inverse(process: Process):
    time = times(process)
    sigma = process.sigma(time)
    assert sigma.dtype == torch.float64
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(sigma, process.std(time) / process.alpha(time))
    torch.testing.assert_close(process.time(sigma), time, rtol=1e-9, atol=1e-9)
    assert process.sigma_min == process.sigma(process.time_range[0]).item() < sigma[0]
    assert process.sigma_max == process.sigma(process.time_range[1]).item() > sigma[-1]


@EVERY
def test_the_network_is_told_more_the_more_noise_there_is(process: Process):
    told = process.timestep(process.sigma(times(process)))
    assert told.dtype == torch.float64
    assert (told.diff() > 0).all()


@EVERY
def test_the_level_of_a_time_step_is_found(process: Process):
    levels = process.sigma(times(process))
    found = process.sigma_at(process.timestep(levels))
    torch.testing.assert_close(found, levels, rtol=1e-4, atol=0)
    ends = process.sigma_at(torch.tensor([process.timestep(levels)[0] - 1e6, 1e9]))
    expected = torch.tensor([process.sigma_min, process.sigma_max], dtype=torch.float64)
    torch.testing.assert_close(ends, expected)


@EVERY
def test_the_network_sees_the_processes_own_x(process: Process):
    """x_t = α·x itself; only EDM scales the input on its own, to variance 1."""
    sigma = process.sigma(times(process))
    scale = process.input_scale(sigma)
    if isinstance(process, EDM):
        torch.testing.assert_close(scale * (sigma**2 + process.sigma_data**2).sqrt(), scale / scale)
    else:
        torch.testing.assert_close(scale, process.alpha(process.time(sigma)), rtol=1e-7, atol=0)


@EVERY
def test_a_start_is_as_strong_as_a_noisy_picture(process: Process):
    noise, picture = normal(0, (0, 0, 0), (100_000,)), normal(1, (0, 0, 0), (100_000,))
    data = process.sigma_data if isinstance(process, EDM) else 1.0
    for sigma in (0.3, 2.0, 40.0):
        started = process.start(noise, sigma)
        assert started.dtype == torch.float32
        noisy = data * picture + sigma * noise
        assert started.std().item() == pytest.approx(noisy.std().item(), rel=0.01)


def test_variances_are_those_of_song():
    """Song et al. 2021b, eq. 29: VP keeps α² + s² = 1, sub-VP s = 1 − α² < VP's, VE α = 1."""
    vp, sub, ve = ContinuousVP(), SubVP(), VE()
    time = times(vp)
    torch.testing.assert_close(vp.alpha(time) ** 2 + vp.std(time) ** 2, time / time)
    torch.testing.assert_close(sub.std(time), 1 - sub.alpha(time) ** 2)
    assert (sub.std(time) < vp.std(time)).all()
    torch.testing.assert_close(
        ve.sigma(time).log().diff(), ve.sigma(time).log().diff().mean().expand(40)
    )
    assert (ve.sigma_min, ve.sigma_max) == pytest.approx((0.01, 50.0))


def test_linear_is_continuous_vp_in_many_steps():
    """T·β of the table is β(t): Ho et al.'s 1e-4 … 0.02 for T = 1000 are Song et al.'s 0.1 … 20."""
    continuous, error = ContinuousVP(), []
    for steps in (1000, 4000):
        discrete = DISCRETE["linear"](steps, 0.1 / steps, 20 / steps)
        time = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        apart = discrete.sigma(time * steps - 1) / continuous.sigma(time) - 1
        error.append(apart.abs().max().item())
    assert error[0] < 0.03
    assert error[1] == pytest.approx(error[0] / 4, rel=0.05)


def test_time_is_sigma_in_edm_and_the_network_hears_a_quarter_of_its_logarithm():
    process, sigma = EDM(), torch.tensor([0.002, 1.0, 80.0])
    assert torch.equal(process.sigma(sigma), sigma.double())
    torch.testing.assert_close(process.timestep(sigma), sigma.double().log() / 4)


def test_rectified_flow_is_a_straight_line_from_picture_to_noise():
    process = Flow()
    time = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(time) + process.std(time), time / time)
    torch.testing.assert_close(process.std(time), time)
    torch.testing.assert_close(process.timestep(process.sigma(time)), 1000 * time)
    assert process.sigma_max == pytest.approx(SIGMA_INF, rel=1e-6)
    ends = torch.tensor([process.sigma_min, process.sigma_max])
    assert process.timestep(ends).tolist() == [1, 1000]


def test_a_shift_is_a_factor_of_sigma_that_the_network_does_not_notice():
    """Esser et al. 2024, eq. 23; at a given σ neither what is seen nor what is told changes."""
    plain, shifted = Flow(), Flow(shift=3.0)
    time = times(plain)
    torch.testing.assert_close(shifted.sigma(time), 3 * plain.sigma(time))
    tau = 3 * time / (1 + 2 * time)
    torch.testing.assert_close(shifted.std(time), tau)
    torch.testing.assert_close(shifted.alpha(time), 1 - tau)
    sigma = plain.sigma(time)
    assert torch.equal(shifted.timestep(sigma), plain.timestep(sigma))
    assert torch.equal(shifted.input_scale(sigma), plain.input_scale(sigma))


@pytest.mark.parametrize("shift", [Flow.MIN_SHIFT, Flow.MAX_SHIFT])
def test_every_shift_allowed_reaches_noise_alone(shift: float):
    """To a few digits: the last time is that near to 1."""
    assert Flow(shift=shift).sigma_max == pytest.approx(SIGMA_INF, rel=1e-5)


@EVERY
def test_which_processes_end_in_noise_alone(process: Process):
    """In float32 the picture is lost from x = x0 + σ·n; sampling begins at that very level.

    One step down an even spacing of times has left it, where a spacing of σ has only begun to.
    """
    last = torch.tensor(process.sigma_max)
    assert process.ends_in_noise == bool(last + 0.4 == last)
    sigmas = SCHEDULES[process.default_schedule](process, 20)
    assert sigmas[0].item() == pytest.approx(process.sigma_max)
    if process.ends_in_noise:
        assert sigmas[1] < 100
        assert (SCHEDULES["karras"](process, 20) > 100).sum() > 15
    else:
        assert process.default_schedule == "karras"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VE(lowest=2.0, highest=1.0), "lowest: 0 < lowest < highest"),
        (lambda: EDM(lowest=0.0), "lowest: 0 < lowest < highest"),
        (lambda: EDM(highest=math.inf), "lowest: 0 < lowest < highest"),
        (lambda: ContinuousVP(beta_min=-1.0), "beta_min: 0 < beta_min < beta_max"),
        (lambda: SubVP(beta_max=math.nan), "beta_min: 0 < beta_min < beta_max"),
        (lambda: Flow(shift=0.0), "shift: 0.0 is not a factor from 0.001 to 1000"),
        (lambda: Flow(shift=1e-9), "shift: 1e-09 is not"),
        (lambda: Flow(shift=math.nan), "shift: nan is not"),
    ],
)
def test_impossible_processes_are_refused(build, message: str):
    with pytest.raises(UndustError, match=message):
        build()
