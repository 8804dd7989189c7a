"""How fast a sampler comes right as its steps get shorter: the measures.

What its error is of depends on the sampler. One that draws no noise follows the probability flow
and is judged by its end. One that draws noise has many ends: their distribution comes right with
the weak order and, where the noise is a Brownian path, the sample on that path with the strong
order. On a Gaussian both of these are measured without a single random number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from analytic import Mixture, flow
from undust.diffusion.fitting import distance, no_noise
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.adaptive import Pair, dormand_prince, dpm_solver_23
from undust.diffusion.samplers.er_sde import SCALES, Scale
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise
from undust.errors import UndustError
from undust.lab.model_under_test import end_of

# From σ = 1 the first steps, which have no past, weigh as much as the others; from far out in the
# noise, where the answers hardly change, even Euler's would go unnoticed.
TOP, BOTTOM = 1.0, 0.1

STEPS = (126, 252, 504)  # multiples of 3, so that dpm-fast always ends alike
PAIR_STEPS = (16, 32, 64)  # more would leave nothing but rounding
WEAK_STEPS = (100, 150, 225)  # below 100 the churn of edm is at its ceiling
STRONG_STEPS = (16, 32, 64, 128)
FINEST = 1024  # steps of the run that others on the same path are compared with

# What adaptive samplers step with. They choose steps of their own; it is these that have an order.
PAIRS: dict[str, Pair] = {"dpm-adaptive": dpm_solver_23, "rk45": dormand_prince}

Point = tuple[int, float]
"""(steps, error)."""


def _doubles(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


GAUSSIAN = Mixture(_doubles(1.0), _doubles([0.5]), _doubles(0.5))
MIXTURE = Mixture(_doubles(0.4, 0.6), _doubles([-1.0, 0.3], [1.2, 0.0]), _doubles(0.4, 0.6))


def linear(top: float, bottom: float, steps: int) -> Tensor:
    """Levels even in σ from top to bottom, float64 [steps + 1]."""
    return torch.linspace(top, bottom, steps + 1, dtype=torch.float64)


def falling(top: float, bottom: float, steps: int) -> Tensor:
    """Levels even in σ^(1/7) from top to bottom, float64 [steps + 1]."""
    return torch.linspace(top ** (1 / 7), bottom ** (1 / 7), steps + 1, dtype=torch.float64) ** 7


def even(top: float, bottom: float, steps: int) -> Tensor:
    """Levels even in log σ from top to bottom, float64 [steps + 1]."""
    return top * (bottom / top) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def fitted(points: Iterable[Point]) -> float:
    """The power of 1/steps with which the error falls: least squares between the logarithms."""
    x, y = _doubles(*points).log().T
    x, y = x - x.mean(), y - y.mean()
    return -((x * y).sum() / (x * x).sum()).item()


def flow_errors(
    name: str,
    denoise: Denoise,
    start: Tensor,
    end: Tensor,
    steps: Sequence[int] | None = None,
    *,
    top: float = TOP,
    **options: Any,
) -> list[Point]:
    """Of a sampler without noise: its distance to `end`, where the flow from `start` is at BOTTOM.

    start, end: [B, …] at σ = top and BOTTOM. The steps are even in σ^(1/7), so that their lengths
    differ in all of the variables that samplers step in; those of a pair are even in σ.
    """

    def reached(count: int) -> Tensor:
        if name in PAIRS:
            return _walk(PAIRS[name], denoise, start, linear(top, BOTTOM, count))
        return end_of(name, denoise, start, falling(top, BOTTOM, count), no_noise, **options)

    steps = steps or (PAIR_STEPS if name in PAIRS else STEPS)
    return [(count, distance(reached(count), end)) for count in steps]


def _walk(pair: Pair, denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """The higher order of a pair along given levels."""

    def denoise_batch(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma.to(x).expand(len(x)))

    for levels in pairwise(sigmas):
        sigma, down = (level.expand(len(x)) for level in levels)
        _, estimate, _ = pair(denoise_batch, x, denoise_batch(x, sigma), sigma, down)
        x = euler_step(x, estimate, sigma, down)
    return x


def weak_errors(name: str, steps: Sequence[int] = WEAK_STEPS, **options: Any) -> list[Point]:
    """Of a sampler with noise: how far mean and variance of its ends are off on the Gaussian."""

    def error(count: int) -> float:
        # Twice as fine: some draw noise over half a step too.
        cuts = even(TOP, BOTTOM, 2 * count) if SAMPLERS[name].path else None
        base, own, shares = impulses(name, even(TOP, BOTTOM, count), cuts, **options)
        centre, spread = GAUSSIAN.means.item(), GAUSSIAN.deviations.item() ** 2
        mean = base + own * centre - centre
        variance = own**2 * (spread + TOP**2) + shares.square().sum() - spread - BOTTOM**2
        return (mean.abs() + variance.abs()).item()

    return [(count, error(count)) for count in steps]


def strong_errors(name: str, steps: Sequence[int] = STRONG_STEPS, **options: Any) -> list[Point]:
    """Of a sampler with noise on the Gaussian: its distance to the solution on the same path.

    Root mean square over all starts and paths. The solution is that of the equation which the
    sampler solves at its default strength of the noise.
    """
    cuts = even(TOP, BOTTOM, FINEST)
    true_own, true_shares = solution(cuts, noise_scale(name, **options))
    start = GAUSSIAN.deviations.item() ** 2 + TOP**2

    def error(count: int) -> float:
        _, own, shares = impulses(name, even(TOP, BOTTOM, count), cuts, **options)
        off = (own - true_own) ** 2 * start + (shares - true_shares).square().sum()
        return off.sqrt().item()

    return [(count, error(count)) for count in steps]


def path_errors(
    name: str,
    denoise: Denoise,
    start: Tensor,
    *,
    steps: Sequence[int] = STRONG_STEPS,
    finest: int = FINEST,
    top: float = TOP,
    **options: Any,
) -> list[Point]:
    """Of a sampler with noise: its distance at BOTTOM to its own finest run on the same path.

    start: [B, …] at σ = top; finest: steps of that run, divisible by all of the steps.
    """
    # Twice as fine as the finest run: some draw noise over half a step too.
    cuts = even(top, BOTTOM, 2 * finest)
    units = _units((2 * finest, *start.shape))
    noise = along(path_levels(cuts, noise_scale(name, **options)), units)

    def end(count: int) -> Tensor:
        return end_of(name, denoise, start, even(top, BOTTOM, count), noise, **options)

    true = end(finest)
    return [(count, distance(end(count), true)) for count in steps]


@cache
def _units(shape: tuple[int, ...]) -> Tensor:
    return normal(3, (0, 0, 0), shape).double()


class BrownianCase:
    """A mixture, with some flows through it and some paths, on which samplers are measured."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.size = mixture.means.shape[1]
        self.start = TOP * normal(1, (0, 0, 0), (32, self.size)).double()

    @cached_property
    def end(self) -> Tensor:
        """Where the flow from `start` is at BOTTOM, to thirteen digits."""
        return flow(self.mixture, self.start, TOP, BOTTOM, 2000)

    def flow_errors(
        self, name: str, steps: Sequence[int] | None = None, **options: Any
    ) -> list[Point]:
        """Of a sampler without noise, against the flow's end."""
        return flow_errors(name, self.mixture, self.start, self.end, steps, **options)

    def path_errors(self, name: str, **options: Any) -> list[Point]:
        """Of a sampler with noise, against its own finest run on the same paths."""
        start = TOP * normal(2, (0, 0, 0), (500, self.size)).double()
        return path_errors(name, self.mixture, start, **options)


def impulses(
    name: str, sigmas: Tensor, cuts: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """A sampler's end on the Gaussian as base + own·start + Σ share·z, z independent unit normals.

    All is linear there, so that one run over a batch of unit impulses, a picture for each, gives
    the whole distribution of its ends.
    cuts: falling σ that cut up a Brownian path, z its unit increments in between: two draws over
    common ground have as much in common as on the path. None: all draws are independent.
    """
    draws = 4 * len(sigmas) if cuts is None else len(cuts) - 1
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[1] = 1
    units = torch.eye(draws + 2, dtype=torch.float64)[2:, :, None]
    if cuts is None:
        noise = independent(units)
    else:
        noise = along(path_levels(cuts, noise_scale(name, **options)), units)
    end = end_of(name, GAUSSIAN, x, sigmas, noise, **options)[:, 0]
    return end[0], end[1] - end[0], end[2:] - end[0]


def independent(units: Tensor) -> Noise:
    """Noise that is the next of the units [N, …] whenever it is asked for."""
    remaining = iter(units)

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        del sigma, sigma_next
        return next(remaining)

    return noise


def along(levels: Tensor, units: Tensor) -> Noise:
    """Noise of one Brownian path: its unit increments [N, …] between falling levels [N + 1].

    Raises UndustError where noise is asked for from or to a level that is none of them.
    """
    widths = _clock(levels).diff()

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        first, last = (int((levels - level).abs().argmin()) for level in (sigma, sigma_next))
        if not torch.allclose(levels[[first, last]], torch.stack([sigma, sigma_next]), rtol=1e-9):
            raise UndustError(f"noise: the path is not cut at σ = {sigma} and {sigma_next}")
        shares = (widths[first:last] / widths[first:last].sum()).sqrt()
        return torch.tensordot(shares, units[first:last], 1)

    return noise


def _clock(level: Tensor) -> Tensor:
    """The clock in which a `BrownianPath` runs."""
    return level**-2


def noise_scale(name: str, **options: Any) -> Scale:
    """φ(σ) of the equation that a sampler solves, d(x/φ) = x0 d(1/φ) + dW, W in the clock (σ/φ)².

    σ² gives the reversed forward process (Cui et al. 2023, table 1), which all solve by default but
    er-sde.
    """
    settings = SAMPLERS[name].options | options
    return SCALES[settings["scale"]] if "scale" in settings else torch.square


def path_levels(sigmas: Tensor, scale: Scale) -> Tensor:
    """The levels φ/σ at which noise is asked for: there a Brownian path's clock shows (σ/φ)²."""
    return scale(sigmas) / sigmas


def solution(sigmas: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """The true own and shares of `impulses`, cut up at sigmas; its error falls with their square.

    A distance y to the mean of a Gaussian of deviation s goes as d log y = σ²/(s² + σ²) d log φ,
    and what the path adds to y is φ times its increment.
    """
    between = (sigmas[1:] * sigmas[:-1]).sqrt()
    kept = between**2 / (GAUSSIAN.deviations.item() ** 2 + between**2)
    growth = kept * scale(sigmas).log().diff()
    rest = growth.flip(0).cumsum(0).flip(0) - growth / 2  # from the middle of a piece to the end
    entering = _clock(path_levels(sigmas, scale)).diff().sqrt() * scale(between)
    return growth.sum().exp(), rest.exp() * entering
