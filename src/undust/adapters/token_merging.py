"""Token merging: self-attention over fewer tokens (Bolya & Hoffman 2023, ToMe for SD).

The transformed network is a copy that shares all weights; the network itself never learns of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.adapters.applied_loras import shared
from undust.errors import UndustError
from undust.networks.attention import Attention, PixelAttention, Rows, SpatialTransformer
from undust.networks.base import DenoiserNetwork
from undust.networks.unet import AnyUNet

STRIDE = 2  # of the tokens that others are merged into, along each side


class Merge:
    """The tokens of each picture of a batch that are merged into others.

    Of each cell of 2×2 tokens the first, at the top left, is a destination; of the others the
    `ratio` of all tokens that are most like one of the destinations are merged into it. The paper
    draws the destinations at random; here a picture is the same each time.
    """

    def __init__(self, tokens: Tensor, shape: tuple[int, int], ratio: float) -> None:
        """Compares tokens [B,N,C] of N = H·W pixels by their cosine similarity."""
        self._kept_sources, self._destinations = _grid(shape, tokens.device)
        unit = F.normalize(tokens, dim=-1)
        sources = unit[:, self._kept_sources]
        similar, nearest = (sources @ unit[:, self._destinations].transpose(1, 2)).max(-1)
        order = similar.argsort(dim=1, descending=True, stable=True)
        count = min(int(tokens.shape[1] * ratio), order.shape[1])
        self._merged, self._left = order[:, :count], order[:, count:]
        self._into = nearest.gather(1, self._merged)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens [B,N,C] → those left and the destinations, averaged [B,N−merged,C]."""
        sources, destinations = tokens[:, self._kept_sources], tokens[:, self._destinations]
        given = _rows(sources, self._merged)
        into = self._into[..., None].expand_as(given)
        averaged = destinations.scatter_reduce(1, into, given, "mean", include_self=True)
        return torch.cat([_rows(sources, self._left), averaged], 1)

    def undone(self, tokens: Tensor) -> Tensor:
        """Such tokens → [B,N,C]: merged ones are equal to their destination."""
        count = self._left.shape[1]
        left, destinations = tokens[:, :count], tokens[:, count:]
        sources = left.new_empty(len(left), len(self._kept_sources), left.shape[2])
        for places, values in (
            (self._left, left),
            (self._merged, _rows(destinations, self._into)),
        ):
            sources.scatter_(1, places[..., None].expand_as(values), values)
        whole = left.new_empty(len(left), sources.shape[1] + destinations.shape[1], left.shape[2])
        whole[:, self._kept_sources], whole[:, self._destinations] = sources, destinations
        return whole


@cache
def _grid(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The indices of sources and destinations of H·W tokens."""
    height, width = shape
    with torch.inference_mode(False):
        index = torch.arange(height * width, device=device).view(height, width)
        first = torch.zeros_like(index, dtype=torch.bool)
        first[::STRIDE, ::STRIDE] = True
        return index[~first], index[first]


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens [B,N,C] at places [B,K] → [B,K,C]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


class _OnGrid(list[Rows]):
    """The replacements of self-attention, and the grid (H, W) of its tokens."""

    def __init__(self, instead: Iterable[Rows], shape: torch.Size) -> None:
        super().__init__(instead)
        self.grid = shape[2], shape[3]


class MergingAttention(Attention):
    """Self-attention over merged tokens; it is given their grid by the layer around it."""

    merging_ratio: float = 0.0

    def forward(
        self, x: Tensor, context: Tensor | None = None, instead: Sequence[Rows] = ()
    ) -> Tensor:
        """As `Attention.forward`; as it was before where nothing can be merged."""
        if context is not None or not isinstance(instead, _OnGrid) or min(instead.grid) < STRIDE:
            return super().forward(x, context, instead)
        merge = Merge(x, instead.grid, self.merging_ratio)
        return merge.undone(super().forward(merge(x), None, instead))


class MergingTransformer(SpatialTransformer):
    """Transformer blocks with `MergingAttention`."""

    def forward(self, x: Tensor, context: Tensor, instead: Sequence[Rows] = ()) -> Tensor:
        """As `SpatialTransformer.forward`."""
        return super().forward(x, context, _OnGrid(instead, x.shape))


class MergingPixelAttention(PixelAttention, MergingAttention):
    """Self-attention of a U-Net without text over merged tokens."""

    def forward(
        self, x: Tensor, context: Tensor | None = None, instead: Sequence[Rows] = ()
    ) -> Tensor:
        """As `PixelAttention.forward`."""
        return super().forward(x, context, _OnGrid(instead, x.shape))


class MergingNetworks:
    """Copies of networks with token merging; of each network the latest is kept."""

    def __init__(self) -> None:
        self._latest: WeakKeyDictionary[nn.Module, tuple[float, nn.Module]] = WeakKeyDictionary()

    def __call__(self, network: DenoiserNetwork, ratio: float) -> DenoiserNetwork:
        """The copy of a U-Net that merges this share of the tokens; itself for 0.

        Raises UndustError as `attentions`.
        """
        if not ratio:
            return network
        known = self._latest.get(network)
        if known is None or known[0] != ratio:
            with torch.inference_mode(False), torch.no_grad():
                known = self._latest[network] = ratio, _merging(network, ratio)
        return cast(DenoiserNetwork, known[1])


def attentions(network: nn.Module) -> list[SpatialTransformer | PixelAttention]:
    """The attention layers at the highest resolution that has any, where most tokens are.

    Raises UndustError for another network than a U-Net, and for one without self-attention.
    """
    kind = type(network).__name__
    if not isinstance(network, AnyUNet):
        raise UndustError(f"token_merging: it is for U-Nets, and this model has a {kind}")
    for down, up in zip(network.down_blocks, [*network.up_blocks][::-1], strict=True):
        layers = chain(down.children(), up.children())
        found = [each for each in _flat(layers) if _attends_to_itself(each)]
        if found:
            return found
    raise UndustError("token_merging: the model's U-Net has no self-attention beside its middle")


def merges(network: nn.Module) -> bool:
    """Whether tokens are merged in it."""
    return any(isinstance(layer, MergingAttention) for layer in network.modules())


def _merging(network: DenoiserNetwork, ratio: float) -> DenoiserNetwork:
    copied = shared(network)
    for layer in attentions(copied):
        if isinstance(layer, PixelAttention):
            layer.__class__ = MergingPixelAttention
            cast(MergingAttention, layer).merging_ratio = ratio
            continue
        layer.__class__ = MergingTransformer
        for block in layer.blocks:
            if not block.only_cross:
                block.attn1.__class__ = MergingAttention
                cast(MergingAttention, block.attn1).merging_ratio = ratio
    return copied


def _flat(lists: Iterable[nn.Module]) -> Iterator[SpatialTransformer | PixelAttention]:
    for layer in chain.from_iterable(cast("Iterable[nn.ModuleList]", lists)):
        if isinstance(layer, SpatialTransformer | PixelAttention):
            yield layer


def _attends_to_itself(layer: SpatialTransformer | PixelAttention) -> bool:
    return isinstance(layer, PixelAttention) or any(not each.only_cross for each in layer.blocks)
