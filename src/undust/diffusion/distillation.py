"""Consistency distillation: one call of a student for the end of a teacher's flow.

The consistency function f(x, σ) is the end of the flow that goes through x at the noise level σ
(Song et al. 2023). It is learnt from pairs of neighbouring points: the teacher's solver takes one
step down a grid of levels, and the student has to have the same value at both points. In several
phases, f is the flow's point at the phase's last level (Heek et al. 2024, Multistep Consistency
Models; Wang et al. 2024, Phased Consistency Models); one phase is latent consistency distillation
(Luo et al. 2023).

A pair may also span a whole phase: then the teacher's solver goes to its end, where no student is
asked (Luhman & Luhman 2021, for one phase).

The student estimates x0; its f at a level `end` is on the line from x to that estimate, as a step
of Euler's method. So f(x, end) = x, the boundary condition, holds for any student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from undust.diffusion.process import EDM, VE, Process
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

Estimate = Callable[[Tensor, Tensor], Tensor]
"""x [B, …] and σ [B] → an estimate of x0 like x."""


def schedule_name(process: Process) -> str:
    """The schedule that places the levels of a process: even times, or even in σ^(1/7)."""
    return "karras" if isinstance(process, EDM | VE) else "trailing"


@dataclass(frozen=True, eq=False)
class ConsistencyGrid:
    """The solver's levels and their phases.

    levels: σ [N + 1], float64, falling to 0; phases: a divisor of N, parts of as many levels.
    """

    levels: Tensor
    phases: int = 1

    @classmethod
    def of(cls, process: Process, steps: int, phases: int) -> ConsistencyGrid:
        """`steps` levels of a process. Raises UndustError if they have no `phases` equal parts."""
        if steps % phases:
            raise UndustError(f"solver_steps is {steps}, which {phases} phases do not divide")
        return cls(SCHEDULES[schedule_name(process)](process, steps), phases)

    def places(self, uniform: Tensor) -> Tensor:
        """Levels by number, 0 … N − 1 from the highest, for numbers in (0, 1)."""
        count = len(self.levels) - 1
        return (uniform * count).long().clamp(max=count - 1)

    def ends(self, places: Tensor) -> Tensor:
        """The numbers of the last levels of their phases, N for the last phase."""
        part = (len(self.levels) - 1) // self.phases
        return (places // part + 1) * part

    @property
    def edges(self) -> Tensor:
        """The levels at which phases begin, and 0: those of sampling."""
        return self.levels[:: (len(self.levels) - 1) // self.phases]

    def thinned(self, steps: int) -> Tensor:
        """At most `steps` + 1 of the levels, with the first and the last."""
        count = len(self.levels) - 1
        return self.levels[torch.linspace(0, count, min(steps, count) + 1).round().long()]


def consistency_error(
    student: Estimate,
    target: Estimate,
    teacher: Estimate,
    x: Tensor,
    places: Tensor,
    grid: ConsistencyGrid,
) -> Tensor:
    """The student's f at x [B, …] minus that of the target one level below, on the teacher's flow.

    (Song et al. 2023, eq. 7; with a guided teacher Luo et al. 2023, algorithm 1.) places: numbers
    of the levels of x; target: the student with averaged weights, or itself, without gradient.
    """
    ends = grid.ends(places)
    sigma, below, end = (grid.levels[each] for each in (places, places + 1, ends))
    with torch.no_grad():
        lower = euler_step(x, teacher(x, sigma.to(x)), sigma, below)
        if bool((places + 1 < ends).any()):
            level = below.clamp(min=float(grid.levels[-2]))  # where it is 0 the line has no length
            beyond = euler_step(lower, target(lower, level.to(x)), level, end)
            inner = (places + 1 < ends).reshape(-1, *[1] * (x.ndim - 1)).to(x.device)
            lower = torch.where(inner, beyond, lower)
    return euler_step(x, student(x, sigma.to(x)), sigma, end) - lower


def euler_path(estimate: Estimate, x: Tensor, levels: Tensor) -> list[Tensor]:
    """The points x [B, …] at all levels, from the first, by Euler's method."""
    path = [x]
    for sigma, following in pairwise(levels):
        x = euler_step(x, estimate(x, sigma.to(x).expand(len(x))), sigma, following)
        path.append(x)
    return path


def pseudo_huber(error: Tensor, width: float) -> Tensor:
    """√(mean square + width²) − width [B] of errors [B, …] (Song & Dhariwal 2023, eq. 7).

    Quadratic for errors much smaller than `width`, of which they have √dim times as much.
    """
    return (error.square().flatten(1).mean(1) + width**2).sqrt() - width
