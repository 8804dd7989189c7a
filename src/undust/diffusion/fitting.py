"""Fitting of a schedule to a denoiser: shorter steps where its flow is curved.

Published schedules place the noise levels by a formula for all models; here they are optimised. The
flow is solved once on a fine grid of levels; the error of a single step between any two of them
then needs no network calls, and dynamic programming (Watson et al. 2021) finds the steps with the
smallest sum of errors. The sum ignores the propagation of errors from step to step, so a local
search with the sampler itself follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, checked_sigmas
from undust.errors import UndustError

WIDEST, NARROWEST = 0.3, 0.01  # moves of the search, in units of the mean step of log σ
GAIN = 1e-3  # relative gain that a move needs, well above differences between processors
DIGITS = 4  # significant digits of every σ, so that the printed schedule is the measured one


@dataclass(frozen=True)
class Fit:
    """A schedule, σ falling to 0, and its error, the `distance` to the end of the flow.

    calls: number of calls of the denoiser so far, each for all pictures.
    """

    sigmas: Tensor
    error: float
    calls: int


def fit(
    denoise: Denoise,
    x: Tensor,
    grid: Tensor,
    steps: int,
    *,
    sampler: str,
    others: Sequence[Tensor] = (),
) -> Iterator[Fit]:
    """Improving schedules of `steps` steps, for starts x [B, …] at level grid[0].

    grid: some sixty falling levels above 0 that bound the schedule's; others: schedules of as many
    steps to start the search from, if better than the result of dynamic programming. Yields the
    best schedule so far after every run of the sampler; the last is the result. It is
    deterministic: no clock and no random numbers, and differences below GAIN are ignored. Raises
    UndustError for a grid with fewer levels than steps, one that ends at 0, and a sampler that
    draws noise.
    """
    grid = checked_sigmas(grid)
    if not 1 <= steps <= len(grid) or grid[-1] == 0:
        raise UndustError(f"grid: {steps} steps need at least as many levels, all of them above 0")
    calls = 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, sigma)

    states, estimates = _walk(counted, x, grid)

    def tried(levels: Tensor) -> Fit:
        sigmas = torch.cat([levels, levels.new_zeros(1)])
        *_, last = SAMPLERS[sampler](counted, x, sigmas, no_noise)
        return Fit(sigmas, distance(last.x, estimates[-1]), calls)

    def moved(levels: Tensor) -> Tensor:
        return levels.new_tensor([float(grid[0]), *map(rounded, levels[1:].tolist())])

    chosen = shortest(step_errors(states, estimates, grid), steps)
    best = tried(moved(grid[chosen]))
    yield best
    for sigmas in others:
        if _fits(sigmas, grid, steps):
            best = _better(best, tried(sigmas[:-1]))
            yield best
    width = WIDEST
    while width >= NARROWEST:
        before = best.sigmas
        for direction in _directions(steps):
            levels = best.sigmas[:-1]
            step = (levels[0] / levels[-1]).log() / steps
            levels = moved(levels * (width * step * direction).exp())
            if bool((levels.diff() < 0).all() and levels[-1] >= grid[-1]):
                best = _better(best, tried(levels))
                yield best
        if best.sigmas is before:
            width /= 2


def rounded(sigma: float) -> float:
    """σ to DIGITS significant digits."""
    return float(f"{sigma:.{DIGITS}g}")


def _better(best: Fit, other: Fit) -> Fit:
    """The other if it gains enough, else the best, with the current number of calls."""
    gained = other.error < (1 - GAIN) * best.error
    return other if gained else replace(best, calls=other.calls)


def distance(x: Tensor, end: Tensor) -> float:
    """The mean of `distances` over the pictures."""
    return float(distances(x, end).mean())


def distances(x: Tensor, end: Tensor) -> Tensor:
    """Root mean square difference [B] of each picture of x to its end [B, …]."""
    return (x - end).double().square().flatten(1).mean(1).sqrt()


def _fits(sigmas: Tensor, grid: Tensor, steps: int) -> bool:
    """Whether a schedule has that many steps, starts at grid[0] and stays on the grid's range."""
    same_start = len(sigmas) == steps + 1 and torch.isclose(sigmas[0].to(grid), grid[0])
    return bool(same_start and sigmas[-2] >= grid[-1])


def _directions(steps: int) -> Iterator[Tensor]:
    """Changes of log σ of each level to try: of one level alone, or of all by a sine.

    A sine moves steps from one range to another; the first level is fixed.
    """
    places = torch.arange(steps, dtype=torch.float64)
    for k in range(1, steps):
        for direction in ((math.pi * k / steps * places).sin(), (places == k).double()):
            yield direction
            yield -direction


def step_errors(states: Sequence[Tensor], estimates: Sequence[Tensor], grid: Tensor) -> Tensor:
    """[M, M, M + 1]: the error at level j of a step from level i after one from level h.

    The step is that of DPM-Solver++(2M), which extrapolates from h and i; for h = i it is the first
    step, Euler's; j = M is σ = 0, with the last estimate as the end. Root mean square over pictures
    and their elements, times 1/√(1 + σ_j²), by which the flow roughly shrinks an error at σ_j.
    Infinite where the levels do not fall.
    """
    count = len(grid)
    goals = torch.stack([*states, estimates[-1]]).double().flatten(1)
    sigmas = torch.cat([grid, grid.new_zeros(1)]).to(goals)
    depth = -sigmas[:-1].log()
    errors = goals.new_full((count, count, count + 1), torch.inf)
    for i in range(count):
        x, x0 = states[i].double().flatten(), estimates[i].double().flatten()
        below = sigmas[i + 1 :, None]
        for h in range(i + 1):
            slope = torch.zeros_like(x0)
            if h < i:
                slope = (x0 - estimates[h].double().flatten()) / (2 * (depth[i] - depth[h]))
            length = torch.cat([depth[i + 1 :] - depth[i], depth.new_zeros(1)])[:, None]
            estimate = x0 + length * slope
            landed = estimate + below / sigmas[i] * (x - estimate)
            off = (landed - goals[i + 1 :]).square().mean(1)
            errors[h, i, i + 1 :] = (off / (1 + sigmas[i + 1 :] ** 2)).sqrt()
    return errors


def shortest(errors: Tensor, steps: int) -> list[int]:
    """Indices of the levels, 0 first, of the path of `steps` steps with the least sum of errors.

    errors: [M, M, M + 1] from `step_errors`.
    """
    count = len(errors)
    # total[i, j]: the least sum over paths whose last step is from i to j.
    total = torch.full_like(errors[0], torch.inf)
    total[0] = errors[0, 0]
    came: list[Tensor] = []
    for _ in range(steps - 1):
        through = total[:, :count, None] + errors
        through.diagonal().fill_(torch.inf)  # h = i is for the first step
        total, before = through.min(0)
        came.append(before)
    place, end = int(total[:, count].argmin()), count
    path = [place]
    for before in reversed(came):
        place, end = int(before[place, end]), place
        path.append(place)
    return path[::-1]


def _walk(denoise: Denoise, x: Tensor, grid: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The flow at every level of the grid by Heun's method: x and the estimates of x0."""

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma.to(x).expand(len(x)))

    states, estimates = [x], [estimate(x, grid[0])]
    for sigma, sigma_next in pairwise(grid):
        x, x0 = states[-1], estimates[-1]
        ahead = estimate(euler_step(x, x0, sigma, sigma_next), sigma_next)
        x = euler_step(x, x0 + sigma / (2 * sigma_next) * (ahead - x0), sigma, sigma_next)
        states.append(x)
        estimates.append(estimate(x, sigma_next))
    return states, estimates


def no_noise(_sigma: Tensor, _sigma_next: Tensor) -> Tensor:
    """The noise of a sampler that must not draw any: raises UndustError."""
    raise UndustError("sampler: only samplers without noise can be used here")
