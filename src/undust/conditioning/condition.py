"""What a batch of pictures is asked to show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from undust.diffusion.interpolation import slerp
from undust.networks.attention import Perturbation


@dataclass(frozen=True)
class Conditioning:
    """One entry for each of B pictures; a network takes the fields that it was built for.

    text: [B, T, D], the text encoder's output for each token of each prompt; perturbed: what
    replaces the network's self-attention for each of them, if anything, or () for none of them.
    """

    text: Tensor
    perturbed: tuple[Perturbation | None, ...] = ()

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.text[part], self.perturbed[part])

    def perturb(self, how: Perturbation) -> Self:
        """The same, asked of a network whose self-attention is weakened."""
        return replace(self, perturbed=(how,) * len(self))

    def toward(self, other: Self, part: Tensor) -> Self:
        """What lies `part` [B] of the way to the other's words, each token along its great arc."""
        tokens = self.text.shape[1]
        arc = slerp(
            self.text.flatten(0, 1), other.text.flatten(0, 1), part.repeat_interleave(tokens)
        )
        return replace(self, text=arc.unflatten(0, self.text.shape[:2]))

    def concat(self, other: Self) -> Self:
        """The entries of both, one after the other."""
        perturbed: tuple[Perturbation | None, ...] = ()
        if self.perturbed or other.perturbed:
            perturbed = tuple(
                how for part in (self, other) for how in part.perturbed or (None,) * len(part)
            )
        return type(self)(torch.cat([self.text, other.text]), perturbed)
