"""What a batch of pictures is asked to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from undust.diffusion.interpolation import slerp
from undust.errors import UndustError
from undust.networks.attention import Perturbation


class Control(Protocol):
    """What shows a U-Net a map, such as the edges that the picture is to have."""

    @property
    def network(self) -> nn.Module:
        """What is asked."""
        ...

    def acts(self, sigma: float) -> bool:
        """Whether it has something to say at this level of noise."""
        ...

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        negative: Tensor | None = None,
        /,
    ) -> Sequence[Tensor]:
        """What is added to each of the U-Net's skips and to its middle; () for nothing.

        The arguments are those of the U-Net; negative: as `Conditioning` has it.
        """
        ...


@dataclass(frozen=True)
class Conditioning:
    """One entry for each of B pictures; a network takes the fields that it was built for.

    text: [B, T, D], the text encoders' states of each token of each prompt; pooled: [B, P], the
    prompt as one vector; sizes: [B, N], the numbers beside it (Podell et al. 2023, section 2.2);
    label: [B], a class; beside: [B, C, h, w], maps that the network sees beside the latent;
    control: what shows maps to it, the same for all entries; perturbed: what replaces the network's
    self-attention for each of them, if anything, or () for none of them; negative: [B], whether an
    entry is what to stay away from, which matters to some controls.
    """

    text: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    label: Tensor | None = None
    beside: Tensor | None = None
    control: tuple[Control, ...] = ()
    perturbed: tuple[Perturbation | None, ...] = ()
    negative: Tensor | None = None

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, part: slice) -> Self:
        tensors = {name: None if t is None else t[part] for name, t in self._tensors().items()}
        return replace(self, **tensors, perturbed=self.perturbed[part])

    def at(self, sigma: Tensor) -> Self:
        """What of it counts at the levels σ [B], of which the highest speaks for all."""
        if not self.control:
            return self
        level = float(sigma.max())
        return replace(self, control=tuple(each for each in self.control if each.acts(level)))

    def perturb(self, how: Perturbation) -> Self:
        """The same, asked of a network whose self-attention is weakened."""
        return replace(self, perturbed=(how,) * len(self))

    def toward(self, other: Self, part: Tensor) -> Self:
        """What lies `part` [B] of the way to the other's words, each token along its great arc."""
        own, others = _repeated(self.text, other.text)
        tokens = own.shape[1]
        arc = slerp(own.flatten(0, 1), others.flatten(0, 1), part.repeat_interleave(tokens))
        pooled = self.pooled
        if pooled is not None and other.pooled is not None:
            pooled = slerp(pooled, other.pooled, part)
        return replace(self, text=arc.unflatten(0, own.shape[:2]), pooled=pooled)

    def concat(self, other: Self) -> Self:
        """The entries of both, one after the other; UndustError if only one of them has a field.

        Texts of different lengths are repeated up to their least common multiple: attention over
        keys and values that all stand there k times is the same as over them once.
        """
        perturbed: tuple[Perturbation | None, ...] = ()
        if self.perturbed or other.perturbed:
            perturbed = tuple(
                how for part in (self, other) for how in part.perturbed or (None,) * len(part)
            )
        joined: dict[str, Tensor | None] = {}
        for (name, own), others in zip(
            self._tensors().items(), other._tensors().values(), strict=True
        ):
            if (own is None) != (others is None):
                raise UndustError(f"conditions with and without {name} cannot be asked together")
            if own is not None and others is not None:
                joined[name] = torch.cat(
                    _repeated(own, others) if name == "text" else [own, others]
                )
        if self.control != other.control:
            raise UndustError("conditions with different controls cannot be asked together")
        return replace(self, **joined, perturbed=perturbed)

    def _tensors(self) -> dict[str, Tensor | None]:
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("control", "perturbed")
        }


def _repeated(a: Tensor, b: Tensor) -> list[Tensor]:
    """Both texts [B, T, D], repeated along T to the least length that both divide."""
    length = math.lcm(a.shape[1], b.shape[1])
    return [text.repeat(1, length // text.shape[1], 1) for text in (a, b)]
