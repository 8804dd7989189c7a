"""Exponential moving average of the weights, used for previews and the published model."""

from __future__ import annotations

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

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the weights and their average; a second call exchanges them back."""
        for name, live in self._weights.items():
            held = live.detach().clone()
            live.copy_(self.average[name])
            self.average[name].copy_(held)

    def load(self, average: dict[str, Tensor]) -> None:
        """Restores the average from a checkpoint."""
        for name, value in self.average.items():
            value.copy_(average[name])
