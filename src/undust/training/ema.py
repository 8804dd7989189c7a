"""Exponential moving average of the weights, used for previews and the published model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's parameters.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the average
    soon forgets the random initialisation (as in the published latent diffusion code).
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._weights = parameters
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights; step: the number of earlier updates."""
        keep = min(self.decay, (1 + step) / (10 + step))
        average = list(self.average.values())
        torch._foreach_lerp_(average, list(self._weights.values()), 1 - keep)  # pyright: ignore

    def load(self, average: dict[str, Tensor]) -> None:
        """Restores the average from a checkpoint."""
        for name, value in self.average.items():
            value.copy_(average[name])


@torch.no_grad()
def exchange(live: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Exchanges the contents of tensors of the same names; a second call exchanges them back."""
    for name, value in other.items():
        held = live[name].detach().clone()
        live[name].copy_(value)
        value.copy_(held)
