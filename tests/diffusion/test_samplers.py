"""What theory says of every sampler, on distributions whose denoiser has a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from analytic import Mixture, flow
from convergence import MIXTURE, falling
from orders import doubles, fitted
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError

# Those that take the list for its ends alone. Adaptive ones answer to a bound, not to a number of
# steps: their order is held in samplers/test_adaptive.py.
ADAPTIVE = [name for name, sampler in SAMPLERS.items() if sampler.adaptive]
OWN_LEVELS = ["dpm-fast", *ADAPTIVE]
DETERMINISTIC = [name for name, sampler in SAMPLERS.items() if not sampler.stochastic]
# Every way to draw fresh noise: the stochastic samplers as they are, and their other options.
STOCHASTIC: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, sampler in SAMPLERS.items() if sampler.stochastic),
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0}),
    ("ddpm", {"variance": "large"}),
]


GAUSSIAN = Mixture(doubles(1.0), doubles([0.5, -1.0]), doubles(0.5))
LINE = Mixture(doubles(0.3, 0.7), doubles([-1.0], [1.0]), doubles(0.2, 0.4))


def no_noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def sample(
    name: str, denoise: Any, x: Tensor, sigmas: Tensor, noise: Any, **options: Any
) -> Tensor:
    *_, last = SAMPLERS[name](denoise, x, sigmas, noise, **options)
    return last.x


def draw(mixture: Mixture, count: int) -> Tensor:
    part = torch.multinomial(mixture.weights, count, True, generator=torch.manual_seed(3))
    noise = normal(3, (0, 0, 0), (count, mixture.means.shape[1])).double()
    return mixture.means[part] + mixture.deviations[part, None] * noise


TOP, BOTTOM = 10.0, 0.1
START = TOP * normal(1, (0, 0, 0), (32, 2)).double()


# Where the order is measured from: at σ = 10 the answers hardly change, so that first steps of too
# low an order would go unnoticed.
NEAR = 1.0


def gaussian_end(start: Tensor, top: float) -> Tensor:
    """The flow of a Gaussian: the distance to the mean shrinks as the deviation does."""
    mean, own = GAUSSIAN.means[0], GAUSSIAN.deviations.item()
    return mean + (start - mean) * math.sqrt((own**2 + BOTTOM**2) / (own**2 + top**2))


@pytest.fixture(scope="module")
def worlds() -> dict[str, tuple[Mixture, Tensor]]:
    start = START * NEAR / TOP
    return {
        "gaussian": (GAUSSIAN, gaussian_end(start, NEAR)),
        "mixture": (MIXTURE, flow(MIXTURE, start, NEAR, BOTTOM, 800)),
    }


@pytest.mark.parametrize("world", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name not in ADAPTIVE])
def test_error_falls_with_the_stated_order(name: str, world: str, worlds: dict[str, Any]):
    denoise, end = worlds[world]
    start = START * NEAR / TOP

    def error(count: int) -> float:
        reached = sample(name, denoise, start, falling(NEAR, BOTTOM, count), no_noise)
        return (reached - end).abs().mean().item()

    slope = fitted(error, [66, 126, 258])  # multiples of 3, so that dpm-fast always ends alike
    assert slope == pytest.approx(SAMPLERS[name].order, abs=0.15)


# A bound in place of the 200 steps, whose error is below what 5000 samples can tell.
FLOWS: list[tuple[str, dict[str, Any]]] = [
    (name, {"rtol": 1e-3, "atol": 1e-3} if name in ADAPTIVE else {}) for name in DETERMINISTIC
]
# Those of order 0 want a distilled model and have a bias on this one: test_consistency.py.
CONVERGING = [case for case in STOCHASTIC if SAMPLERS[case[0]].order > 0]


@pytest.mark.parametrize(("name", "options"), [*FLOWS, *CONVERGING])
def test_samples_have_the_mean_and_variance_of_the_mixture(name: str, options: dict[str, Any]):
    count, top = 5_000, 20.0
    draws = iter(range(1000))
    x = draw(LINE, count) + top * normal(4, (0, 0, 0), (count, 1)).double()

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return normal(5, (next(draws), 0, 0), (count, 1))

    sigmas = torch.cat([falling(top, 0.01, 200), doubles(0.0)])
    end = sample(name, LINE, x, sigmas, noise, **options)

    w, m, s = LINE.weights, LINE.means[:, 0], LINE.deviations
    mean = (w * m).sum()
    variance = (w * (s**2 + (m - mean) ** 2)).sum()
    fourth = (w * ((m - mean) ** 4 + 6 * (m - mean) ** 2 * s**2 + 3 * s**4)).sum()
    assert abs(end.mean() - mean) < 4 * (variance / count).sqrt()
    assert abs(end.var() - variance) < 4 * ((fourth - variance**2) / count).sqrt()


EXACT_NOISE = [case for case in STOCHASTIC if case != ("ddpm", {"variance": "large"})]


@pytest.mark.parametrize(("name", "options"), EXACT_NOISE)
def test_the_noise_at_every_level_is_that_level(name: str, options: dict[str, Any]):
    """With a single picture to find, steps of any length keep x0 + σ·n exactly."""
    picture, count = doubles(0.7), 40_000
    sigmas = doubles(9.0, 4.0, 1.5, 0.3, 0.0)
    draws = iter(range(9))
    x = picture + sigmas[0] * normal(6, (0, 0, 0), (count, 1)).double()
    steps = SAMPLERS[name](
        lambda x, sigma: picture.expand_as(x),
        x,
        sigmas,
        lambda sigma, sigma_next: normal(7, (next(draws), 0, 0), (count, 1)),
        **options,
    )
    for step, sigma in zip(steps, sigmas[1:], strict=True):
        assert step.sigma == sigma
        tolerance = 4 * sigma / math.sqrt(2 * count)
        assert ((step.x - picture).square().mean().sqrt() - sigma).abs() <= tolerance


def test_large_variance_is_that_of_the_forward_step():
    """Ho et al. 2020, §3.2: β = 1 − ᾱ/ᾱ_next in the coordinates of a VP process."""
    sigmas = doubles(2.0, 1.0)
    alpha, alpha_next = 1 / (1 + sigmas**2)
    unit = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros_like(unit)
    end = sample("ddpm", lambda x, _: zero, zero, sigmas, lambda *_: unit, variance="large")
    torch.testing.assert_close(end * alpha_next.sqrt(), unit * (1 - alpha / alpha_next).sqrt())


def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    """Stands for a network: some smooth function of both arguments."""
    return torch.tanh(x.roll(1, 1) - sigma[:, None] / 3)


def test_three_names_of_one_stochastic_step():
    def run(name: str, **options: Any) -> Tensor:
        draws = iter(range(99))
        noise = lambda *_: normal(8, (next(draws), 0, 0), START.shape)  # noqa: E731
        return sample(name, smooth, START, falling(10, 0, 7), noise, **options)

    assert torch.equal(run("ddpm"), run("euler-ancestral"))
    assert torch.equal(run("ddpm"), run("ddim", eta=1.0))
    assert torch.equal(run("euler"), run("ddim"))
    assert torch.equal(run("euler"), run("euler-ancestral", eta=0.0))
    assert not torch.equal(run("ddpm"), run("ddpm", variance="large"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_the_denoised_mean(name: str):
    sigmas = doubles(10.0, 0.0)
    end = sample(name, GAUSSIAN, START, sigmas, no_noise)
    assert torch.equal(end, GAUSSIAN(START, sigmas[:1].expand(len(START))))


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_say_where_they_are(name: str):
    sigmas = falling(10, 0, 6)
    noise = lambda *_: torch.zeros_like(START)  # noqa: E731
    steps = list(SAMPLERS[name](smooth, START, sigmas, noise))
    levels = torch.stack([step.sigma for step in steps])
    assert (levels.diff() < 0).all()
    assert levels[-1] == sigmas[-1]
    # The levels of the list that are reached or passed, but for the first, less one.
    assert [step.index for step in steps] == [int((sigmas >= s).sum()) - 2 for s in levels]
    assert torch.equal(steps[-1].x, steps[-1].x0)
    if name not in OWN_LEVELS:
        assert torch.equal(levels, sigmas[1:])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_each_step_heads_for_the_estimate_it_names(name: str):
    """SamplerStep.x0 is the estimate that was used: x moves straight towards it."""
    sigmas, x = falling(10, 0, 6), START[:1]  # one: with an adaptive sampler each goes its own way
    sigma = sigmas[0]
    for step in SAMPLERS[name](smooth, x, sigmas, no_noise):
        torch.testing.assert_close(step.x, step.x0 + step.sigma / sigma * (x - step.x0))
        x, sigma = step.x, step.sigma


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("given", "worked"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_precision_and_shapes_of_what_is_asked(name: str, given: str, worked: str):
    """The denoiser is asked with σ of shape [B] in the working precision, float32 at least."""
    dtype = getattr(torch, worked)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert (x.shape, x.dtype) == ((3, 4, 2, 2), dtype)
        assert (sigma.shape, sigma.dtype) == ((3,), dtype)
        return x / 2

    x = torch.ones(3, 4, 2, 2, dtype=getattr(torch, given))
    for step in SAMPLERS[name](denoise, x, falling(10, 0, 3), lambda *_: x.double()):
        assert step.x.dtype == dtype
        assert step.sigma.dtype == torch.float64


@pytest.mark.parametrize(
    "sigmas",
    [
        doubles(1.0),
        doubles([2.0, 1.0]),
        doubles(2.0, 2.0),
        doubles(1.0, 2.0),
        doubles(1.0, -1.0),
        doubles(math.inf, 1.0),
        doubles(math.nan, 1.0),
    ],
)
def test_other_lists_of_sigma_are_refused_at_once(sigmas: Tensor):
    with pytest.raises(UndustError, match=r"^sigmas: "):
        SAMPLERS["euler"](smooth, START, sigmas, no_noise)


def test_errors_name_what_is_right():
    run = SAMPLERS["ddim"]
    with pytest.raises(UndustError, match="unknown sampler 'eular'; did you mean 'euler'"):
        SAMPLERS["eular"]
    with pytest.raises(UndustError, match="unknown option of sampler ddim 'etta'; did you mean"):
        run(smooth, START, falling(1, 0, 2), no_noise, etta=1.0)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UndustError, match=r"^eta: "):
            run(smooth, START, falling(1, 0, 2), no_noise, eta=eta)
    with pytest.raises(UndustError, match=r"^variance: 'tiny' is neither"):
        SAMPLERS["ddpm"](smooth, START, falling(1, 0, 2), no_noise, variance="tiny")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_says_what_it_is(name: str):
    assert SAMPLERS[name].name == name
    assert len(SAMPLERS[name].summary) > 20
