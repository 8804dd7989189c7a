"""A network's inputs other than the noisy latents and the time step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from undust.diffusion.interpolation import slerp
from undust.errors import UndustError
from undust.networks.attention import Perturbation
from undust.networks.deep_cache import DeepCache


@dataclass(frozen=True)
class Conditioning:
    """The conditions of `batch` pictures; a network reads the fields it was built for.

    text: [B, T, D], the text encoders' states of each token of each prompt; pooled: [B, P], the
    prompt as one vector; size_ids: [B, N], the numbers beside it (Podell et al. 2023, section 2.2);
    label: [B], a class; estimate: [B, C, h, w], an earlier estimate of the clean latents, for
    self-conditioning; extra_channels: [B, C, h, w], maps that are concatenated with the latents;
    negative: [B], whether an entry is a negative prompt, which matters to some ControlNets. Raises
    UndustError for a field with another number of entries.
    """

    batch: int
    text: Tensor | None = None
    pooled: Tensor | None = None
    size_ids: Tensor | None = None
    label: Tensor | None = None
    estimate: Tensor | None = None
    extra_channels: Tensor | None = None
    negative: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self.tensors().items():
            if len(tensor) != self.batch:
                raise UndustError(f"conditioning: {name} is for {len(tensor)}, not {self.batch}")

    def __len__(self) -> int:
        return self.batch

    def __getitem__(self, part: slice) -> Self:
        chosen = {name: tensor[part] for name, tensor in self.tensors().items()}
        return replace(self, batch=len(range(self.batch)[part]), **chosen)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Moved to a device, text and maps in `dtype`; numbers keep their dtype."""
        kept = ("size_ids", "label", "negative")
        moved = {
            name: tensor.to(device) if name in kept else tensor.to(device, dtype)
            for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)

    def labels(self, classes: int) -> Tensor:
        """The class of each picture, [B]; UndustError without one and for one outside `classes`."""
        if self.label is None:
            raise UndustError("this network needs a class label for each picture")
        if not bool(((self.label >= 0) & (self.label < classes)).all()):
            raise UndustError(f"class labels are 0 to {classes - 1}, not {self.label.max().item()}")
        return self.label

    def network_input(self, x: Tensor) -> Tensor:
        """Latents x [B, …, C, h, w] with the estimate and the extra channels behind them."""
        behind = [each for each in (self.estimate, self.extra_channels) if each is not None]
        return torch.cat([x, *behind], -3) if behind else x

    def with_estimate(self, x0: Tensor) -> Self:
        """With an earlier estimate x0 [B, C, h, w] of the clean latents."""
        return replace(self, estimate=x0)

    def merged(self, other: Self) -> Self:
        """With the fields of another conditioning of the same pictures."""
        return replace(self, **other.tensors())

    def beside(self, channels: Tensor | None, label: Tensor | None = None) -> Self:
        """With further channels [B, C, h, w] before its extra channels, and with a label [B]."""
        cond = self if label is None else replace(self, label=label)
        if channels is None:
            return cond
        if cond.extra_channels is not None:
            channels = torch.cat([channels, cond.extra_channels.to(channels)], 1)
        return replace(cond, extra_channels=channels)

    def toward(self, other: Self, part: Tensor) -> Self:
        """Spherical interpolation of each token of the text, by `part` [B], towards `other`."""
        if self.text is None or other.text is None:
            raise UndustError("conditioning: only conditions with text can be interpolated")
        own, others = _repeated(self.text, other.text)
        tokens = own.shape[1]
        arc = slerp(own.flatten(0, 1), others.flatten(0, 1), part.repeat_interleave(tokens))
        pooled = self.pooled
        if pooled is not None and other.pooled is not None:
            pooled = slerp(pooled, other.pooled, part)
        return replace(self, text=arc.unflatten(0, own.shape[:2]), pooled=pooled)

    def concat(self, other: Self) -> Self:
        """The entries of both, one after the other; UndustError if only one of them has a field.

        Texts of different lengths are repeated to their least common multiple: attention over keys
        and values that are all repeated k times is the same as over one copy.
        """
        own, others = self.tensors(), other.tensors()
        if different := sorted(own.keys() ^ others.keys()):
            raise UndustError(
                f"conditions with and without {different[0]} cannot share a network call"
            )
        joined = {
            name: torch.cat(
                _repeated(tensor, others[name]) if name == "text" else [tensor, others[name]]
            )
            for name, tensor in own.items()
        }
        return replace(self, batch=self.batch + other.batch, **joined)


class ControlBranch(Protocol):
    """A ControlNet with its input picture and weight."""

    @property
    def network(self) -> nn.Module:
        """The network that is called."""
        ...

    def acts(self, sigma: float) -> bool:
        """Whether it is active at this noise level."""
        ...

    def __call__(self, x: Tensor, timestep: Tensor, cond: Conditioning, /) -> Sequence[Tensor]:
        """The tensors added to the U-Net's skip connections and middle block; () for none.

        The arguments are those of the U-Net.
        """
        ...


@dataclass(frozen=True)
class CallOptions:
    """Options of a network call that are functions, not data.

    perturbed: for each entry of the batch, the replacement of its self-attention in the middle
    block, or None; controls: the same for all entries; deep: the caches of deep features, each of
    some entries, in order, or () to compute all of them; sigma: the noise level of the call.
    """

    perturbed: tuple[Perturbation | None, ...] = ()
    controls: tuple[ControlBranch, ...] = ()
    deep: tuple[DeepCache, ...] = ()
    sigma: float = math.inf

    def started(self) -> Self:
        """For one run, with caches of its own."""
        return replace(self, deep=tuple(each.started() for each in self.deep))

    def at(self, sigma: Tensor) -> Self:
        """At the highest of the levels σ [B], with the controls that are active there."""
        if not self.controls and not self.deep:
            return self
        level = float(sigma.max())
        active = tuple(each for each in self.controls if each.acts(level))
        return replace(self, controls=active, sigma=level)

    def concat(self, other: Self) -> Self:
        """For the entries of both; UndustError for different controls."""
        if self.controls != other.controls:
            raise UndustError("conditions with different controls cannot share a network call")
        deep = self.deep + other.deep
        return replace(self, perturbed=self.perturbed + other.perturbed, deep=deep)

    def by_cache(self) -> Iterator[tuple[slice, Self]]:
        """The entries of each cache, with their options."""
        end = 0
        for each in self.deep:
            begin, end = end, end + each.batch
            rows = slice(begin, end)
            yield rows, replace(self, perturbed=self.perturbed[rows], deep=(each,))


def _repeated(a: Tensor, b: Tensor) -> list[Tensor]:
    """Both texts [B, T, D], repeated along T to the least common multiple of their lengths."""
    length = math.lcm(a.shape[1], b.shape[1])
    return [text.repeat(1, length // text.shape[1], 1) for text in (a, b)]
