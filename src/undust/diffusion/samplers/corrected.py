"""A sampler whose x is changed before each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from undust.diffusion.samplers.registry import Denoise, Noise, Sampler, SamplerStep, checked_sigmas

Correct = Callable[[Tensor, Tensor], Tensor]
"""(x [B, …], σ [B]) -> x [B, …] in its place, at the same level."""


def corrected(
    sampler: Sampler, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, correct: Correct
) -> Iterator[SamplerStep]:
    """The steps of a sampler, each from the corrected x; arguments as for a `Sampler`.

    Each is a run of its own from one level to the next. That is the same for a sampler of single
    steps, such as euler; one of several steps has none before.
    """
    for index, pair in enumerate(pairwise(checked_sigmas(sigmas))):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = correct(x, pair[0].to(x).expand(len(x)))
        for step in sampler(denoise, x, torch.stack(pair), noise):
            x = step.x
            yield replace(step, index=index)
