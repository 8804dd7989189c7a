"""Align Your Steps: levels optimised for specific models (Sabour et al. 2024).

The tables are the authors' for ten steps (research.nvidia.com/labs/toronto-ai/AlignYourSteps); for
other numbers of steps log σ is interpolated evenly, as the authors do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undust.diffusion.process import Process
from undust.diffusion.schedules.registry import schedule

SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
SVD = (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def _aligned(table: tuple[float, ...], process: Process, steps: int) -> Tensor:
    """Even places on the table, without its last level, for which 0 follows.

    A process with less noise than the table starts where the table reaches its largest σ.
    """
    level = torch.tensor(table, dtype=torch.float64).log()
    last = len(table) - 1
    top = level.new_tensor(process.sigma_max).log()
    piece = int((level[1:-1] > top).sum())
    part = (level[piece] - top) / (level[piece] - level[piece + 1])
    start = piece + part.clamp(0, 1).item()
    place = start + (last - start) * torch.arange(steps, dtype=torch.float64) / steps
    low = place.floor().long().clamp(max=last - 1)
    return torch.lerp(level[low], level[low + 1], place - low).exp()


@schedule("align-your-steps")
def align_your_steps(process: Process, steps: int) -> Tensor:
    """Optimised for Stable Diffusion 1.5 (Sabour et al. 2024)."""
    return _aligned(SD1, process, steps)


@schedule("align-your-steps-sdxl")
def align_your_steps_sdxl(process: Process, steps: int) -> Tensor:
    """Optimised for Stable Diffusion XL (Sabour et al. 2024)."""
    return _aligned(SDXL, process, steps)


@schedule("align-your-steps-svd")
def align_your_steps_svd(process: Process, steps: int) -> Tensor:
    """Optimised for Stable Video Diffusion, from σ = 700 (Sabour et al. 2024)."""
    return _aligned(SVD, process, steps)
