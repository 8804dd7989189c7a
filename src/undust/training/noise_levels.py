"""What a recipe's dust means: the process, and which of its levels samples are trained at."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from undust.diffusion.process import DISCRETE, EDM, Flow, Process, zero_terminal_snr
from undust.diffusion.weighting import lognormal
from undust.training.configs import CosineNoiseConfig, Dust, EDMNoiseConfig, FlowNoiseConfig

Levels = Callable[[Tensor], Tensor]
"""Numbers in (0, 1) -> σ, float64, of the same shape."""


def forward(dust: Dust) -> tuple[Process, Levels]:
    """The process and its levels; UndustError for values of which there is no process."""
    if isinstance(dust, EDMNoiseConfig):
        process = EDM(dust.sigma_min, dust.sigma_max, dust.sigma_data)
        return process, lambda uniform: lognormal(uniform, dust.p_mean, dust.p_std)
    if isinstance(dust, FlowNoiseConfig):
        flow = Flow(dust.shift, dust.steps)
        first, last = flow.time_range
        return flow, lambda uniform: flow.sigma(first + (last - first) * uniform)
    ends = () if isinstance(dust, CosineNoiseConfig) else (dust.beta_start, dust.beta_end)
    discrete = DISCRETE[dust.process](dust.steps, *ends)
    if dust.zero_terminal_snr:
        discrete = zero_terminal_snr(discrete)

    def at_whole_steps(uniform: Tensor) -> Tensor:
        # Esser et al. 2024, eq. 23: what words decide is decided under thick dust.
        shifted = dust.shift * uniform / (1 + (dust.shift - 1) * uniform)
        return discrete.sigmas[(shifted * discrete.steps).long()]

    return discrete, at_whole_steps
