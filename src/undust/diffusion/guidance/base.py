"""Guidance: a denoiser made from others, which are all evaluated together.

A guidance requests the estimates of other denoisers and combines them. Stacked guidances form a
tree; its leaves are evaluated first, all that have one network in a single call, and each of them
once, however often it is in the tree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
"""Yields once, the denoisers to evaluate; is sent their estimates [B, …]; returns its own."""


@dataclass(frozen=True, eq=False)
class ConditionedDenoiser(Generic[C]):
    """A network with one condition: the leaf of every tree of guidance.

    self_conditioned: whether the network takes its last estimate in the run, which then is set by
    the condition's method `with_estimate`.
    """

    denoise: Denoiser[C]
    cond: C
    options: Options | None = None
    self_conditioned: bool = False

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate [B, …] of the clean x [B, …] at sigma [B]."""
        return self.denoise(x, sigma, *self.arguments)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The condition, and the options if there are any."""
        return (self.cond,) if self.options is None else (self.cond, self.options)

    def started(self) -> ConditionedDenoiser[C]:
        """For one run, with what its options remember."""
        return self if self.options is None else replace(self, options=self.options.started())

    def concat(self, other: ConditionedDenoiser[C]) -> ConditionedDenoiser[C]:
        """Both conditions of the one network in one call; UndustError if one alone has options."""
        options = None
        if self.options is not None and other.options is not None:
            options = self.options.concat(other.options)
        elif self.options is not other.options:
            raise UndustError(
                "guidance: conditions with and without options cannot be evaluated together"
            )
        return replace(self, cond=self.cond.concat(other.cond), options=options)


@dataclass(frozen=True)
class EvalState:
    """The point of evaluation, x [B, …] at sigma [B], and the memory of the run."""

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
        """The value of a scale here: a number, or [1, F, 1, …] if the frames of x differ in it."""
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
        """Updates the memory of `owner`, 0 at the beginning, and returns it."""
        if self.memory is None:
            raise UndustError(
                "guidance: this has the memory of one run; give the sampler GuidedRun(guidance)"
            )
        self.memory[id(owner)] = update(self.memory.get(id(owner), 0.0))
        return self.memory[id(owner)]


class Guidance(ABC):
    """A denoiser made from others; frozen, so that one can serve any number of runs."""

    @abstractmethod
    def estimate(self, at: EvalState) -> GuidanceRequest:
        """Requests the estimates that it needs here, and combines them.

        At a neutral setting it requests the one that is left, alone, and returns it untouched: the
        same calls and the same bits as without it.
        """
        ...

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate [B, …] of the clean x [B, …] at sigma [B].

        Raises UndustError for guidance with a memory: that takes a `GuidedRun`.
        """
        return GuidedRun(self, None)(x, sigma)


@dataclass(frozen=True, eq=False)
class GuidedRun:
    """A denoiser for one run of a sampler, with the memory of its guidance, or None for none.

    Conditions that are evaluated together are joined once, so that a network is given the same
    tensors at each step and can keep what it computes of them. What options remember is of this run
    too.
    """

    denoise: Denoise
    memory: dict[int, Tensor] | None = field(default_factory=dict[int, Tensor])
    _started: dict[int, tuple[Any, Any]] = field(
        default_factory=dict[int, tuple[Any, Any]], init=False, repr=False
    )
    _joined: dict[tuple[int, ...], tuple[Any, Any]] = field(
        default_factory=dict[tuple[int, ...], tuple[Any, Any]], init=False, repr=False
    )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate [B, …] of the clean x [B, …] at sigma [B].

        All requests are made first, from the root of the tree to its leaves; then the leaves are
        evaluated, those of one network in one call; then the estimates are combined up to the root.
        """
        requests: dict[int, tuple[GuidanceRequest, Sequence[Denoise]]] = {}
        leaves: dict[int, Denoise] = {}
        _collect(self.denoise, EvalState(x, sigma, self.memory), requests, leaves)
        known: dict[int, Tensor] = {}
        for group in _grouped([*leaves.values()], x):
            first, count = group[0], len(group)
            if not isinstance(first, ConditionedDenoiser):
                known[id(first)] = first(x, sigma)
                continue
            batch = self._join(group)
            xs = torch.cat([x] * count) if count > 1 else x
            sigmas = sigma.repeat(count) if count > 1 else sigma
            if batch.self_conditioned and self.memory is not None:
                last = [self.memory.get(id(leaf), torch.zeros_like(x)) for leaf in group]
                batch = replace(batch, cond=batch.cond.with_estimate(torch.cat(last)))
            parts = batch.denoise(xs, sigmas, *batch.arguments).chunk(count)
            found = {id(leaf): part for leaf, part in zip(group, parts, strict=True)}
            known |= found
            if batch.self_conditioned and self.memory is not None:
                self.memory.update(found)
        return _combined(self.denoise, requests, known)

    def _join(self, group: list[ConditionedDenoiser[Any]]) -> ConditionedDenoiser[Any]:
        """The conditions of a group in one."""
        key = tuple(map(id, group))
        if key not in self._joined:  # it keeps the group too, whose ids then are not reused
            started = [self._start(leaf) for leaf in group]
            self._joined[key] = group, reduce(ConditionedDenoiser[Any].concat, started)
        return self._joined[key][1]

    def _start(self, leaf: ConditionedDenoiser[Any]) -> ConditionedDenoiser[Any]:
        """A leaf with the memory of this run, which is one in all groups."""
        if id(leaf) not in self._started:
            self._started[id(leaf)] = leaf, leaf.started()
        return self._started[id(leaf)][1]


def _collect(
    denoise: Denoise,
    at: EvalState,
    requests: dict[int, tuple[GuidanceRequest, Sequence[Denoise]]],
    leaves: dict[int, Denoise],
) -> None:
    """The requests of all guidance below a denoiser, each with its denoisers, and the leaves."""
    if id(denoise) in requests or id(denoise) in leaves:
        return
    if not isinstance(denoise, Guidance):
        leaves[id(denoise)] = denoise
        return
    request = denoise.estimate(at)
    requests[id(denoise)] = request, next(request)
    for inner in requests[id(denoise)][1]:
        _collect(inner, at, requests, leaves)


def _grouped(leaves: Sequence[Denoise], x: Tensor) -> list[list[Any]]:
    """The leaves that are evaluated together; each that is no network with a condition is alone.

    So is each for films, [B, F, C, H, W]: their frames are a batch already, so that several
    conditions in one call are no faster, and take the memory of all.
    """
    alone = [[leaf] for leaf in leaves if not isinstance(leaf, ConditionedDenoiser)]
    networks: list[list[ConditionedDenoiser[Any]]] = []
    for leaf in leaves:
        if not isinstance(leaf, ConditionedDenoiser):
            continue
        branch: ConditionedDenoiser[Any] = leaf
        if len(branch.cond) != len(x):
            raise UndustError(f"guidance: {len(branch.cond)} conditions for {len(x)} pictures")
        alike = (group for group in networks if group[0].denoise == branch.denoise)
        same = next(alike, None) if x.ndim < 5 else None
        networks.append([branch]) if same is None else same.append(branch)
    return [*alone, *networks]


def _combined(
    denoise: Denoise,
    requests: Mapping[int, tuple[GuidanceRequest, Sequence[Denoise]]],
    known: dict[int, Tensor],
) -> Tensor:
    """The estimate of a denoiser whose leaves are known."""
    if id(denoise) not in known:
        request, inner = requests[id(denoise)]
        try:
            request.send([_combined(each, requests, known) for each in inner])
        except StopIteration as end:
            known[id(denoise)] = end.value
    return known[id(denoise)]


def equals(scale: float | Tensor, neutral: float) -> bool:
    """Whether a scale is this number, for every frame."""
    return not isinstance(scale, Tensor) and scale == neutral


def checked_scale(scale: Scale) -> None:
    """Raises UndustError for a number that is not finite."""
    if not callable(scale) and not math.isfinite(scale):
        raise UndustError(f"guidance: {scale} is not a finite scale")
