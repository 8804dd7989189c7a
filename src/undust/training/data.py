"""The order of samples, and their random numbers.

Everything random about a sample is a pure function of (seed, epoch, index): its position in the
order, its crop, its noise level and noise. A run that is killed and resumed therefore sees the same
numbers as one without interruption, whatever the batch size or the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import NamedTuple

import torch
from torch import Tensor

from undust.diffusion.noise import normal, uniform

CPU = torch.device("cpu")
Observe = Callable[[int, int], object]
"""Called with the number of images that are done, and of all."""


@unique
class RandomStream(IntEnum):
    """The use of a random number: one counter word, so that no two uses share numbers."""

    ORDER = 1
    CROP = 2
    POSTERIOR = 3
    TIME = 4
    NOISE = 5
    CAPTION = 6
    DROP = 7
    DROP_LABEL = 8
    DROP_MAP = 9
    LOW_RESOLUTION = 10
    MASK = 11
    LOW_RESOLUTION_NOISE = 12
    TRANSFORM = 13
    REVIVAL = 14
    OFFSET = 15
    PERTURBATION = 16
    SELF_CONDITIONING = 17
    VIEW = 18
    GUIDANCE = 19
    AUGMENTATION = 20
    AUGMENTATION_NOISE = 21


@dataclass(frozen=True)
class Batch:
    """The samples of one step, and the counters of their random numbers.

    sample: [B] indices into the data source; epoch, index: [B] their positions in the run; step:
    the number of earlier steps; device: of the normal numbers.
    """

    seed: int
    step: int
    sample: tuple[int, ...]
    epoch: tuple[int, ...]
    index: tuple[int, ...]
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.sample)

    def normal(self, stream: RandomStream, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [B, *shape], float32."""
        return normal(self.seed, self._counters(stream), shape).to(self.device)

    def uniform(self, stream: RandomStream, count: int = 1) -> Tensor:
        """Numbers in (0, 1), [B, count], float64."""
        return uniform(self.seed, self._counters(stream), (count,))

    def _counters(self, stream: RandomStream) -> Tensor:
        return torch.tensor([(e, i, stream) for e, i in zip(self.epoch, self.index, strict=True)])


class SamplePlace(NamedTuple):
    """A sample, an index into the data source, and the counters of its draw."""

    sample: int
    epoch: int
    position: int


class SampleOrder:
    """The endless order of samples: every group once an epoch, its members in turn.

    With one image per group this is an ordinary shuffled pass; with the variants of a concept as a
    group, a concept of 25 variants is drawn as often as a concept of one.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], seed: int, device: torch.device = CPU
    ) -> None:
        self.groups, self.device = groups, device
        self.seed = seed
        self._epoch = -1
        self._permutation: list[int] = []

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step` (from 0); batches continue across the ends of epochs."""
        return self.draws(range(step * size, (step + 1) * size), step)

    def draws(self, places: range, step: int) -> Batch:
        """The samples at places of the endless order, as a batch of `step`."""
        return self.at(places, step)

    def at(self, places: Sequence[int], step: int) -> Batch:
        """The samples at any places of the epochs, one epoch after the other."""
        return self._batch(self._places(places), step)

    def whole_epochs(self, epochs: int, size: int, step: int) -> Iterator[Batch]:
        """All samples of the first epochs, in batches of at most `size`."""
        end = epochs * len(self.groups)
        for start in range(0, end, size):
            yield self.draws(range(start, min(start + size, end)), step)

    def _batch(self, places: Sequence[SamplePlace], step: int) -> Batch:
        samples, epochs, indices = zip(*places, strict=True)
        return Batch(self.seed, step, samples, epochs, indices, self.device)

    def _places(self, places: Sequence[int]) -> list[SamplePlace]:
        pairs = [divmod(place, len(self.groups)) for place in places]
        return [SamplePlace(self._sample(epoch, index), epoch, index) for epoch, index in pairs]

    def _sample(self, epoch: int, index: int) -> int:
        if epoch != self._epoch:
            keys = uniform(self.seed, (epoch, 0, RandomStream.ORDER), (len(self.groups),))
            self._permutation = keys.argsort().tolist()
            self._epoch = epoch
        group = self._permutation[index]
        members = self.groups[group]
        return members[(epoch + group) % len(members)]


def crop(images: Tensor, size: int, where: Tensor) -> Tensor:
    """Square crops [B, 3, size, size]; `where` [B, 2] in (0, 1) places their corners."""
    room = images.shape[-1] - size
    corners = (where * (room + 1)).floor().long().tolist()
    return torch.stack(
        [
            image[:, top : top + size, left : left + size]
            for image, (top, left) in zip(images, corners, strict=True)
        ]
    )
