"""Sets of real pictures, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from undust.datasets.samples import Sample
from undust.pictures import from_image, read_image

MAX_BATCH_PIXELS = 4 * 512 * 512  # pixels that are encoded or described in one batch


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size.

    read: the picture at an index as bytes [3,H,W]; size: width and height; of: which pictures they
    are, such as "held-out pictures".
    """

    count: int
    read: Callable[[int], Tensor]
    size: tuple[int, int]
    of: str = "pictures"

    @classmethod
    def of_files(cls, paths: Sequence[Path], size: tuple[int, int], of: str = "pictures") -> Self:
        """Picture files, resized and cropped to `size` by `from_image`."""
        return cls(len(paths), lambda index: from_image(read_image(paths[index]), size), size, of)

    @classmethod
    def of_samples(
        cls, samples: Sequence[Sample], size: tuple[int, int], of: str = "pictures"
    ) -> Self:
        """Pictures of a data set, as those of `of_files`."""
        return cls(len(samples), lambda index: from_image(samples[index].image(), size), size, of)

    def __len__(self) -> int:
        return self.count

    def batches(self) -> Iterator[Tensor]:
        """All pictures as bytes [B,3,H,W], in order."""
        together = max(1, MAX_BATCH_PIXELS // (self.size[0] * self.size[1]))
        for start in range(0, self.count, together):
            indices = range(start, min(start + together, self.count))
            yield torch.stack([self.read(index) for index in indices])


def in_unit_range(pictures: Tensor) -> Tensor:
    """Bytes as numbers in [-1,1]."""
    return pictures / 127.5 - 1
