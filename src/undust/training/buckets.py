"""Aspect-ratio buckets: sizes of about one area, and an order with batches of one size each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from undust.errors import UndustError
from undust.training.data import CPU, Batch, SampleOrder, SamplePlace

Size = tuple[int, int]
"""Width and height, pixels."""


def bucket_sizes(size: int, multiple: int, max_ratio: float) -> list[Size]:
    """The sizes of the buckets: the square, then from nearly square to the longest.

    Each side is a multiple of `multiple`; the area is the largest one up to size² for its longer
    side, so that no batch needs more memory than one of squares (as Podell et al. 2023, appendix I,
    and sd-scripts). size: a multiple of `multiple`; max_ratio: of the longer side to the shorter.
    """
    found = [(size, size)]
    for longer in count(size + multiple, multiple):
        shorter = size * size // longer // multiple * multiple
        if not shorter or longer > max_ratio * shorter:
            return found
        found += [(longer, shorter), (shorter, longer)]
    raise AssertionError("the ratio grows")


@dataclass(frozen=True)
class BucketRule:
    """The requirements of a network and a run.

    multiple: of which the sides of buckets are multiples; batch: samples of a step.
    """

    multiple: int
    batch: int

    def sizes(self, size: int, max_ratio: float) -> list[Size]:
        """As `bucket_sizes`. Raises UndustError if there is no bucket but the square."""
        if size % self.multiple:
            fits = max(1, round(size / self.multiple)) * self.multiple
            raise UndustError(
                f"data.buckets: data.size is {size}, and sides of buckets are multiples of "
                f"{self.multiple}, to fit the first stage and the network; {fits} would be one"
            )
        found = bucket_sizes(size, self.multiple, max_ratio)
        if len(found) == 1:
            raise UndustError(
                f"data.buckets: there is no bucket but {size}x{size} of about this area with sides "
                f"that are multiples of {self.multiple} and a ratio up to data.max_ratio = "
                f"{max_ratio:g}; a larger data.size or data.max_ratio has more"
            )
        return found

    def order(self, order: SampleOrder, sizes: Mapping[int, Size]) -> BucketOrder:
        """An order in batches of one size each; sizes: of the samples."""
        return BucketOrder(order.groups, sizes, self.batch, order.seed, order.device)


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose ratio is nearest to that of a picture, in logarithms."""
    ratio = math.log(size[0] / size[1])
    return min(buckets, key=lambda each: abs(ratio - math.log(each[0] / each[1])))


class BucketOrder(SampleOrder):
    """The order of `SampleOrder` in batches of one bucket each.

    The samples are taken in their order, each is put with those of its bucket that wait, and as
    many as a batch has are a batch. So nothing is lost at the end of an epoch: a bucket's remaining
    samples wait for the next epoch, and come first there. Every sample is trained on as often as
    without buckets, and keeps its epoch and index, of which its random numbers are a function. The
    batches depend on the batch size and on nothing else, so that a resumed run continues.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        buckets: Mapping[int, Size],
        batch: int,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        """buckets: of each sample; batch: samples of a step."""
        super().__init__(groups, seed, device)
        self._buckets, self._size = buckets, batch
        numbers = {size: number for number, size in enumerate(dict.fromkeys(buckets.values()))}
        self._numbers = torch.tensor([numbers[buckets[k]] for group in groups for k in group])
        self._lengths = torch.tensor([len(group) for group in groups])
        self._starts = self._lengths.cumsum(0) - self._lengths
        self._names = [*numbers]
        self._drawn: list[list[int]] = [[0] * len(numbers)]  # of each bucket before each epoch
        self._done = [0]  # batches before each epoch
        self._batches: tuple[int, list[list[SamplePlace]]] = (-1, [])
        self._left: tuple[int, dict[Size, list[SamplePlace]]] = (0, {})

    def whole_epochs(self, epochs: int, size: int, step: int) -> Iterator[Batch]:
        """As `SampleOrder`, bucket by bucket."""
        buckets: dict[Size, list[SamplePlace]] = {}
        for place in self._places(range(epochs * len(self.groups))):
            buckets.setdefault(self._buckets[place.sample], []).append(place)
        for places in buckets.values():
            for start in range(0, len(places), size):
                yield self._batch(places[start : start + size], step)

    def draws(self, places: range, step: int) -> Batch:
        """Some samples of one batch, by their places in the order of batches."""
        number, first = divmod(places.start, self._size)
        assert first + len(places) <= self._size, "the samples of two batches differ in size"
        while self._done[-1] <= number:
            self._count()
        epoch = next(e for e in reversed(range(len(self._done))) if self._done[e] <= number)
        if epoch != self._batches[0]:
            self._batches = epoch, self._batched(epoch)
        batch = self._batches[1][number - self._done[epoch]]
        return self._batch(batch[first : first + len(places)], step)

    def _count(self) -> None:
        """The samples drawn of each bucket, and the batches, before one epoch more."""
        members = self._starts + (len(self._drawn) - 1 + torch.arange(len(self._lengths))) % (
            self._lengths
        )
        found = torch.bincount(self._numbers[members], minlength=len(self._names)).tolist()
        drawn = [a + b for a, b in zip(self._drawn[-1], found, strict=True)]
        self._drawn.append(drawn)
        self._done.append(sum(each // self._size for each in drawn))

    def _batched(self, epoch: int) -> list[list[SamplePlace]]:
        """The batches that are complete in an epoch, in the order in which they become so."""
        waiting, found = self._waiting(epoch), list[list[SamplePlace]]()
        for place in self._epoch_places(epoch):
            own = waiting.setdefault(self._buckets[place.sample], [])
            own.append(place)
            if len(own) == self._size:
                found.append(waiting.pop(self._buckets[place.sample]))
        self._left = epoch + 1, waiting
        return found

    def _waiting(self, epoch: int) -> dict[Size, list[SamplePlace]]:
        """The samples of earlier epochs that wait at the start of an epoch, by bucket."""
        if epoch == self._left[0]:
            return {bucket: [*places] for bucket, places in self._left[1].items()}
        missing = {
            bucket: drawn % self._size
            for bucket, drawn in zip(self._names, self._drawn[epoch], strict=True)
        }
        found: dict[Size, list[SamplePlace]] = {}
        for before in reversed(range(epoch)):
            if not any(missing.values()):
                break
            for place in reversed(self._epoch_places(before)):
                bucket = self._buckets[place.sample]
                if missing[bucket]:
                    missing[bucket] -= 1
                    found.setdefault(bucket, []).append(place)
        return {bucket: places[::-1] for bucket, places in found.items()}

    def _epoch_places(self, epoch: int) -> list[SamplePlace]:
        count = len(self.groups)
        return self._places(range(epoch * count, (epoch + 1) * count))
