"""Seed 001's six equations, held against one another and against closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from analytic import Mixture
from equations import (
    denoiser_flow,
    denoiser_score,
    exploding_flow,
    forward_sde,
    network_flow,
    probability_flow,
    reverse_sde,
    score_matching,
)
from processes import BUILT
from undust.diffusion.process import Process

EVERY = pytest.mark.parametrize("process", [pytest.param(p, id=name) for name, p in BUILT.items()])


def doubles(*values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LINE = Mixture(doubles(0.3, 0.7), doubles([-1.0], [1.0]), doubles(0.2, 0.4))
PLANE = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.4, 0.6))
LOW, HIGH, STEPS = 0.1, 5.0, 300


def path(process: Process, start: float, end: float) -> Tensor:
    """Times at even steps in log σ."""
    ends = doubles(start, end).log()
    return process.time(torch.linspace(ends[0].item(), ends[1].item(), STEPS + 1).double().exp())


def noised(mixture: Mixture, process: Process, time: Tensor) -> Mixture:
    """The distribution of α·x0; with s(t) as its σ that of x_t."""
    alpha = process.alpha(time)
    return Mixture(mixture.weights, alpha * mixture.means, alpha * mixture.deviations)


def log_density(mixture: Mixture, process: Process, x: Tensor, time: Tensor) -> Tensor:
    deviation = process.std(time).expand(len(x))
    return noised(mixture, process, time).log_density(x, deviation)


def score_of(mixture: Mixture, process: Process, x: Tensor, time: Tensor) -> Tensor:
    """∇log q(x_t), by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_density(mixture, process, x, time).sum(), x)[0]


def mean_of(mixture: Mixture, process: Process, x: Tensor, time: Tensor) -> Tensor:
    """E[x0 | x_t], the perfect denoiser's answer."""
    return mixture(x / process.alpha(time), process.sigma(time).expand(len(x)))


def draw(mixture: Mixture, process: Process, time: Tensor, count: int) -> Tensor:
    """x_t = α·x0 + s·n for x0 of the mixture."""
    generator = torch.Generator().manual_seed(0)
    part = torch.multinomial(mixture.weights, count, True, generator=generator)
    own, added = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    x0 = mixture.means[part] + mixture.deviations[part, None] * own
    return process.alpha(time) * x0 + process.std(time) * added


def apart(x: Tensor, mixture: Mixture, process: Process, time: Tensor) -> float:
    """Kolmogorov and Smirnov's distance of a sample [N, 1] from the distribution of x_t."""
    part = noised(mixture, process, time)
    spread = (part.deviations**2 + process.std(time) ** 2).sqrt()
    x = x.flatten().sort().values
    below = (torch.special.ndtr((x[:, None] - part.means[:, 0]) / spread) * part.weights).sum(1)
    return (below - torch.linspace(0, 1, len(x), dtype=torch.float64)).abs().max().item()


@EVERY
def test_1_the_forward_equation_has_the_marginals_of_the_process(process: Process):
    """From one picture, α·x0 and s at every level; Euler and Maruyama's steps, from σ 0.1 to 5."""
    x0, count = 2.0, 10_000
    times = path(process, LOW, HIGH)
    generator = torch.Generator().manual_seed(1)
    x = x0 * process.alpha(times[0]) + process.std(times[0]) * torch.randn(
        count, 1, generator=generator, dtype=torch.float64
    )
    for index, (time, after) in enumerate(pairwise(times)):
        drift, diffusion = forward_sde(process, x, (time + after) / 2)
        fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x + drift * (after - time) + diffusion * (after - time).sqrt() * fresh
        if index % 100 == 99:
            deviation = process.std(after)
            assert abs(x.mean() - process.alpha(after) * x0) < 0.05 * deviation
            assert abs(x.std() / deviation - 1) < 0.04


@pytest.mark.parametrize(
    "name", ["scaled-linear", "zero-snr", "vp", "sub-vp", "ve", "edm", "flow-shifted"]
)
@pytest.mark.parametrize("equation", ["reverse", "flow"])
def test_2_the_reverse_equation_and_the_flow_have_the_same_marginals(name: str, equation: str):
    """From σ = 5 down to 0.1, a mixture with its closed score: the exact distribution each time."""
    process = BUILT[name]
    times = path(process, HIGH, LOW)
    x = draw(LINE, process, times[0], 5_000)
    generator = torch.Generator().manual_seed(2)
    for index, (time, after) in enumerate(pairwise(times)):
        score = denoiser_score(process, x, time, mean_of(LINE, process, x, time))
        if equation == "flow":
            x = x + probability_flow(process, x, time, score) * (after - time)
        else:
            drift, diffusion = reverse_sde(process, x, time, score)
            fresh = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x = x + drift * (after - time) + diffusion * (time - after).sqrt() * fresh
        if index % 100 == 99:
            assert apart(x, LINE, process, after) < 0.035


def test_2_without_half_of_the_score_the_distribution_is_another():
    """The test above can tell: the drift of the reverse equation is not the flow's."""
    process = BUILT["ve"]
    times = path(process, HIGH, LOW)
    x = draw(LINE, process, times[0], 5_000)
    for time, after in pairwise(times):
        score = denoiser_score(process, x, time, mean_of(LINE, process, x, time))
        drift, _ = reverse_sde(process, x, time, score)
        x = x + drift * (after - time)
    assert apart(x, LINE, process, times[-1]) > 0.05


def test_3_the_loss_is_the_weighted_square():
    predicted, score = torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    assert score_matching(doubles(1.0, 0.5), predicted, score).tolist() == [12, 6]


X = 2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@EVERY
def test_5_is_4_with_the_score_of_a_perfect_denoiser(process: Process):
    """(α·μ − x)/s² is ∇log q of a mixture (by autograd), and so the two slopes are one."""
    for time in path(process, LOW, HIGH)[::60]:
        x = process.alpha(time) * X + process.std(time)
        mean = mean_of(PLANE, process, x, time)
        score = score_of(PLANE, process, x, time)
        torch.testing.assert_close(
            denoiser_score(process, x, time, mean), score, rtol=1e-7, atol=1e-9
        )
        learnt = network_flow(process, x, time, lambda x, t: score_of(PLANE, process, x, t))
        torch.testing.assert_close(
            denoiser_flow(process, x, time, mean), learnt, rtol=1e-7, atol=1e-9
        )


@EVERY
def test_5_as_the_seed_writes_it_wants_an_alpha_of_1(process: Process):
    """(μ − x)/σ² is the score of x_t for VE and EDM; elsewhere it has to be read in x_t/α."""
    time = path(process, LOW, HIGH)[STEPS // 2]
    alpha, sigma = process.alpha(time), process.sigma(time)
    x = alpha * X
    mean = mean_of(PLANE, process, x, time)
    score = score_of(PLANE, process, x, time)
    assert torch.allclose((mean - x) / sigma**2, score) == (alpha == 1)
    # Read in the coordinate x_t/α it is right for all; the chain rule gives the factor.
    torch.testing.assert_close((mean - x / alpha) / sigma**2, alpha * score, rtol=1e-7, atol=1e-9)


@EVERY
def test_6_is_what_5_is_in_the_coordinate_of_x0(process: Process):
    """d(x_t/α)/dt = (dx_t/dt − f·x_t)/α has to be (x − μ)/σ·dσ/dt with x = x_t/α."""
    for time in path(process, LOW, HIGH)[30:-30:40]:
        time = time + 1e-3 * (time == time.round())
        at = time.clone().requires_grad_()
        (rise,) = torch.autograd.grad(process.sigma(at), at)
        alpha, sigma = process.alpha(time), process.sigma(time)
        x = alpha * X
        mean = mean_of(PLANE, process, x, time)
        slope = (denoiser_flow(process, x, time, mean) - process.f(time) * x) / alpha
        torch.testing.assert_close(
            exploding_flow(X, sigma, mean) * rise, slope, rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_6_is_5_itself_where_variance_explodes(name: str):
    process = BUILT[name]
    for time in path(process, LOW, HIGH)[::60]:
        at = time.clone().requires_grad_()
        (rise,) = torch.autograd.grad(process.sigma(at), at)
        mean = mean_of(PLANE, process, X, time)
        slope = exploding_flow(X, process.sigma(time), mean) * rise
        torch.testing.assert_close(denoiser_flow(process, X, time, mean), slope)
