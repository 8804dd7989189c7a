"""Deep features of a U-Net that are reused for some steps (Ma et al. 2023, DeepCache)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CLOSE = 1e-6  # samplers evaluate at levels rounded to float32


@dataclass(eq=False)
class DeepFeatures:
    """The features of a U-Net call that enter its last decoder layer.

    features: [B,C,H,W], or None for a whole call, which then sets them; control: what ControlNets
    added to the skip connection of that layer, set with them, () without ControlNets.
    """

    features: Tensor | None = None
    control: Sequence[Tensor] = ()


@dataclass(eq=False)
class DeepCache:
    """The deep features of one branch of guidance during one run.

    batch: the number of its entries; starts: the noise levels at which the features are computed
    anew, falling. The first call at or below such a level is a whole one, those until the next
    level reuse its features. So the schedule decides, and not the number of calls a step or the
    branches that share a call.
    """

    batch: int
    starts: tuple[float, ...]
    _key: Hashable = field(default=None, init=False)
    _kept: DeepFeatures | None = field(default=None, init=False)

    def started(self) -> DeepCache:
        """For a run, without features."""
        return DeepCache(self.batch, self.starts)

    def kept(self, sigma: float, key: Hashable) -> DeepFeatures | None:
        """The features to reuse at a noise level; None if they have to be computed.

        key: whatever else they depend on, such as the active ControlNets.
        """
        return self._kept if self._key == (self._period(sigma), key) else None

    def keep(self, found: DeepFeatures, sigma: float, key: Hashable) -> None:
        """Keeps the features of a whole call."""
        self._key, self._kept = (self._period(sigma), key), found

    def _period(self, sigma: float) -> int:
        """The number of the level in `starts` that σ is at or below."""
        return max(sum(start >= sigma * (1 - CLOSE) for start in self.starts), 1)


def joined(parts: Sequence[DeepFeatures]) -> DeepFeatures:
    """The features of several branches as one batch."""
    if len(parts) == 1:
        return parts[0]
    features = [each.features for each in parts if each.features is not None]
    control = [torch.cat(each) for each in zip(*(each.control for each in parts), strict=True)]
    return DeepFeatures(torch.cat(features), control)


def split(found: DeepFeatures, sizes: Sequence[int]) -> list[DeepFeatures]:
    """The features of a batch by branch."""
    if found.features is None or len(sizes) == 1:
        return [found for _ in sizes]
    controls = zip(*(each.split([*sizes]) for each in found.control), strict=True)
    features = found.features.split([*sizes])
    if not found.control:
        return [DeepFeatures(each) for each in features]
    return [DeepFeatures(*each) for each in zip(features, controls, strict=True)]
