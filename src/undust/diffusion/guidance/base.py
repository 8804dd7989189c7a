"""What guidance is: a denoiser made from others, which are all asked together.

A guidance names the denoisers it wants to hear, and says what it makes of their estimates. Stacked
guidances form a tree; its leaves are asked first, every branch of one network in a single call and
each of them once, however often the tree mentions it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from undust.diffusion.denoiser import Condition, Denoiser, Options
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError

CLOSE = 1e-6  # levels nearer to one another than this are one: float32 cannot tell them apart

C = TypeVar("C", bound=Condition)
Scale = float | Callable[[float], float | Tensor]
"""How strongly to guide: a number, or a function of σ that gives one, or one a frame [F]."""

GuidanceRequest = Generator["Sequence[Denoise]", Sequence[Tensor], Tensor]
"""Yields once, the denoisers to ask; is sent their estimates [B, …]; returns its own."""


@dataclass(frozen=True, eq=False)
class ConditionedDenoiser(Generic[C]):
    """A network asked for one condition: the leaf that every guidance ends in."""

    denoise: Denoiser[C]
    cond: C
    options: Options | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate [B, …] of what is under x [B, …] at sigma [B]."""
        if self.options is None:
            return self.denoise(x, sigma, self.cond)
        return self.denoise(x, sigma, self.cond, self.options)

    def concat(self, other: ConditionedDenoiser[C]) -> ConditionedDenoiser[C]:
        """Both conditions of the one network in one call; UndustError if one alone has options."""
        options = None
        if self.options is not None and other.options is not None:
            options = self.options.concat(other.options)
        elif self.options is not other.options:
            raise UndustError(
                "guidance: branches with and without options cannot be asked together"
            )
        return ConditionedDenoiser(self.denoise, self.cond.concat(other.cond), options)


@dataclass(frozen=True)
class EvalState:
    """Where a run stands: x [B, …] at sigma [B], and what was kept from earlier in the run."""

    x: Tensor
    sigma: Tensor
    memory: dict[int, Tensor] | None

    @cached_property
    def level(self) -> float:
        """σ as one number. Raises UndustError if it is not the same for the whole batch."""
        low, high = self.sigma.aminmax()
        if low != high:
            raise UndustError("sigma: guidance that changes with σ needs one σ for the whole batch")
        return low.item()

    @property
    def sigma_like_x(self) -> Tensor:
        """σ [B, 1, …] to be multiplied with x."""
        return self.sigma.reshape(-1, *[1] * (self.x.ndim - 1))

    def scale(self, scale: Scale) -> float | Tensor:
        """What a scale is here: a number, or [1, F, 1, …] if the frames of x differ in it."""
        value = scale(self.level) if callable(scale) else scale
        if isinstance(value, Tensor) and (value == value.flatten()[0]).all():
            value = value.flatten()[0].item()
        if not isinstance(value, Tensor):
            checked_scale(value)
            return value
        if self.x.ndim != 5 or value.shape != self.x.shape[1:2]:
            raise UndustError(
                f"guidance: a scale of shape {[*value.shape]} does not fit x {[*self.x.shape]}; "
                "it has one number for each frame of x [B, F, C, H, W]"
            )
        return value.to(self.x).reshape(-1, 1, 1, 1)

    def remember(self, owner: Guidance, update: Callable[[Tensor | float], Tensor]) -> Tensor:
        """Replaces what `owner` kept, 0 at the beginning, by what `update` makes of it."""
        if self.memory is None:
            raise UndustError(
                "guidance: momentum is the memory of one run; give the sampler GuidedRun(guidance)"
            )
        self.memory[id(owner)] = update(self.memory.get(id(owner), 0.0))
        return self.memory[id(owner)]


class Guidance(ABC):
    """A denoiser made from others; frozen, so that one can serve any number of runs."""

    @abstractmethod
    def estimate(self, at: EvalState) -> GuidanceRequest:
        """Asks the denoisers it needs at this moment and mixes what they say.

        At a neutral setting it asks the one that is left, alone, and returns the answer untouched:
        the same calls and the same bits as without it.
        """
        ...

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate [B, …] of what is under x [B, …] at sigma [B].

        Raises UndustError if it would have to remember the moment before: that takes a `GuidedRun`.
        """
        return _answer(self, EvalState(x, sigma, None))


@dataclass(frozen=True, eq=False)
class GuidedRun:
    """A denoiser for one run of a sampler: with it begins, and ends, what guidance remembers."""

    denoise: Denoise
    memory: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate [B, …] of what is under x [B, …] at sigma [B]."""
        return _answer(self.denoise, EvalState(x, sigma, self.memory))


def _answer(root: Denoise, at: EvalState) -> Tensor:
    """Plans from the root to the leaves, asks the leaves, mixes from the leaves to the root."""
    waiting: dict[int, tuple[GuidanceRequest, Sequence[Denoise]]] = {}
    leaves: dict[int, Denoise] = {}

    def plan(part: Denoise) -> None:
        if id(part) in waiting or id(part) in leaves:
            return
        if not isinstance(part, Guidance):
            leaves[id(part)] = part
            return
        asking = part.estimate(at)
        waiting[id(part)] = asking, next(asking)
        for inner in waiting[id(part)][1]:
            plan(inner)

    def mix(part: Denoise) -> Tensor:
        if id(part) not in known:
            asking, inner = waiting[id(part)]
            try:
                asking.send([mix(each) for each in inner])
            except StopIteration as end:
                known[id(part)] = end.value
        return known[id(part)]

    plan(root)
    known = _estimates(list(leaves.values()), at)
    return mix(root)


def _estimates(leaves: Sequence[Denoise], at: EvalState) -> dict[int, Tensor]:
    """What each leaf says; branches of one network in one call, in the order they were asked."""
    known: dict[int, Tensor] = {}
    networks: list[list[ConditionedDenoiser[Any]]] = []
    for leaf in leaves:
        if not isinstance(leaf, ConditionedDenoiser):
            known[id(leaf)] = leaf(at.x, at.sigma)
            continue
        branch: ConditionedDenoiser[Any] = leaf
        if len(branch.cond) != len(at.x):
            raise UndustError(f"guidance: {len(branch.cond)} conditions for {len(at.x)} pictures")
        same = next((all_ for all_ in networks if all_[0].denoise == branch.denoise), None)
        networks.append([branch]) if same is None else same.append(branch)
    for branches in networks:
        together = reduce(ConditionedDenoiser[Any].concat, branches)
        count = len(branches)
        x = torch.cat([at.x] * count) if count > 1 else at.x
        sigma = at.sigma.repeat(count) if count > 1 else at.sigma
        parts = together(x, sigma).chunk(count)
        known |= {id(branch): part for branch, part in zip(branches, parts, strict=True)}
    return known


def equals(scale: float | Tensor, neutral: float) -> bool:
    """Whether a scale is this number, for every frame."""
    return not isinstance(scale, Tensor) and scale == neutral


def checked_scale(scale: Scale) -> None:
    """Raises UndustError for a number that is not finite."""
    if not callable(scale) and not math.isfinite(scale):
        raise UndustError(f"guidance: {scale} is not a finite scale")
