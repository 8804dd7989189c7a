"""What a batch of pictures is asked to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """One entry for each of B pictures; a network takes the fields that it was built for.

    text: [B, T, D], the text encoder's output for each token of each prompt.
    """

    text: Tensor

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.text[part])

    def concat(self, other: Self) -> Self:
        """The entries of both, one after the other."""
        return type(self)(torch.cat([self.text, other.text]))
