"""Consistency distillation: one call of a student for the end of a teacher's flow.

The consistency function f(x, σ) is the end of the flow that goes through x at the noise level σ
(Song et al. 2023). It is learnt from pairs of neighbouring points: the teacher's solver takes one
step down a grid of levels, and the student has to have the same value at both points. In several
phases, f is the flow's point at the phase's last level (Heek et al. 2024, Multistep Consistency
Models; Wang et al. 2024, Phased Consistency Models); one phase is latent consistency distillation
(Luo et al. 2023).

The student estimates x0; its f at a level `end` is on the line from x to that estimate, as a step
of Euler's method. So f(x, end) = x, the boundary condition, holds for any student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undust.diffusion.process import EDM, VE, Process
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


def line(x: Tensor, x0: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
    """x [B, …] at σ [B] moved to the levels `end` [B] along the line to x0: Euler's method.

    In these coordinates the step of DDIM too.
    """
    share = (end / sigma).to(x).reshape(-1, *[1] * (x.ndim - 1))
    return x0 + share * (x - x0)


def consistency_error(
    student: Estimate,
    target: Estimate,
    teacher: Estimate,
    x: Tensor,
    places: Tensor,
    grid: ConsistencyGrid,
) -> Tensor:
    """f of the student at x [B, …] minus f of the target one level below, on the teacher's flow.

    (Song et al. 2023, eq. 7; with a guided teacher Luo et al. 2023, eq. 14.) places: numbers of the
    levels of x; target: the student with averaged weights, or itself; no gradient reaches it.
    """
    ends = grid.ends(places)
    sigma, below, end = (grid.levels[each] for each in (places, places + 1, ends))
    with torch.no_grad():
        lower = line(x, teacher(x, sigma.to(x)), sigma, below)
        if bool((places + 1 < ends).any()):
            level = below.clamp(min=float(grid.levels[-2]))  # where it is 0 the line has no length
            beyond = line(lower, target(lower, level.to(x)), level, end)
            inner = (places + 1 < ends).reshape(-1, *[1] * (x.ndim - 1)).to(x.device)
            lower = torch.where(inner, beyond, lower)
    return line(x, student(x, sigma.to(x)), sigma, end) - lower


def solved_error(
    student: Estimate,
    teacher: Estimate,
    x: Tensor,
    places: Tensor,
    grid: ConsistencyGrid,
    steps: int,
) -> Tensor:
    """f of the student at x [B, …] minus the end of the teacher's flow from there.

    In `steps` steps of Euler's method through levels of the grid, or in as many as there are.
    """
    ends = grid.ends(places)
    end, at, solved = grid.levels[ends], places, x
    for left in range(steps, 0, -1):
        # Places without a step stay where they are: the line from a level to itself.
        following = at + ((ends - at) / left).ceil().long()
        now = grid.levels[at.clamp(max=len(grid.levels) - 2)]
        then = torch.where(at < ends, grid.levels[following], now)
        solved, at = line(solved, teacher(solved, now.to(x)), now, then), following
    sigma = grid.levels[places]
    return line(x, student(x, sigma.to(x)), sigma, end) - solved


def pseudo_huber(error: Tensor, width: float) -> Tensor:
    """√(mean square + width²) − width [B] of errors [B, …] (Song & Dhariwal 2023, eq. 7).

    Quadratic for errors much smaller than `width`, of which they have √dim times as much.
    """
    return (error.square().flatten(1).mean(1) + width**2).sqrt() - width
