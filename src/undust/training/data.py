"""Which picture comes when, and the pictures themselves.

Everything random about a sample is a pure function of (seed, epoch, index): which picture it is,
where it is cropped, how much noise it gets. A run that is killed and resumed therefore sees what
the uninterrupted run saw, whatever the batch size or the number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

from undust.datasets import image_folder
from undust.datasets.image_folder import Sample
from undust.diffusion.noise import normal, uniform
from undust.errors import UndustError
from undust.formats.safetensors_file import content_hash
from undust.pictures import from_image, read_image
from undust.training.configs import DataConfig

# Told how many of a number of pictures are done.
Observe = Callable[[int, int], object]


class RandomStream(IntEnum):
    """What a random number is for: one counter word, so that no two uses share a stream."""

    ORDER = 1
    CROP = 2
    POSTERIOR = 3
    TIME = 4
    NOISE = 5
    CAPTION = 6
    DROP = 7


@dataclass(frozen=True)
class Batch:
    """The samples of one step: which they are, and the counters of their random numbers.

    `sample` [B] indexes the data set; `epoch` and `index` [B] say where in the run they stand.
    """

    seed: int
    sample: tuple[int, ...]
    epoch: tuple[int, ...]
    index: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sample)

    def normal(self, purpose: RandomStream, shape: Sequence[int]) -> Tensor:
        """Unit normal numbers [B, *shape], float32."""
        return normal(self.seed, self._counters(purpose), shape)

    def uniform(self, purpose: RandomStream, count: int = 1) -> Tensor:
        """Numbers in (0, 1), [B, count], float64."""
        return uniform(self.seed, self._counters(purpose), (count,))

    def _counters(self, purpose: RandomStream) -> Tensor:
        return torch.tensor([(e, i, purpose) for e, i in zip(self.epoch, self.index, strict=True)])


class SampleOrder:
    """The endless order of samples: every group once an epoch, its members in turn.

    With one picture to a group that is an ordinary shuffled pass; with a concept's variants as a
    group, a concept of 25 variants is drawn as often as a concept of one.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        self.groups = groups
        self.seed = seed
        self._epoch = -1
        self._permutation: list[int] = []

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step` (from 0); batches run across the ends of epochs."""
        places = [divmod(p, len(self.groups)) for p in range(step * size, (step + 1) * size)]
        samples = tuple(self._sample(epoch, index) for epoch, index in places)
        epochs, indices = zip(*places, strict=True)
        return Batch(self.seed, samples, epochs, indices)

    def _sample(self, epoch: int, index: int) -> int:
        if epoch != self._epoch:
            keys = uniform(self.seed, (epoch, 0, RandomStream.ORDER), (len(self.groups),))
            self._permutation = keys.argsort().tolist()
            self._epoch = epoch
        which = self._permutation[index]
        members = self.groups[which]
        return members[(epoch + which) % len(members)]


def training_samples(data: DataConfig) -> tuple[list[Sample], list[str]]:
    """The samples that a recipe trains on, and notes on the files of the folder that it does not.

    Raises UndustError if there are none, and for files that cannot be used unless they may be
    skipped.
    """
    found = image_folder.scan(data.folder)
    samples = image_folder.usable(found, split="train", on_error=data.on_error)
    others = [sample for sample in found.samples if sample.split != "train"]
    if not samples:
        held_out = f"; {len(others)} are held out from training" if others else ""
        raise UndustError(f"{data.folder} has no training pictures{held_out}")
    notes = found.notes()
    left_out = len(found.broken) + len(found.samples) - len(others) - len(samples)
    if left_out:
        notes.append(f"left out since they cannot be read: {left_out}; see undust data check")
    return samples, [f"{data.folder}: {note}" for note in notes]


def groups(samples: Sequence[Sample], draw_by: str) -> list[list[int]]:
    """Indices of the samples that share a draw, in order of first appearance."""
    if draw_by == "picture":
        return [[index] for index in range(len(samples))]
    by_name: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_name.setdefault(sample.group, []).append(index)
    return list(by_name.values())


def content_digest(paths: Iterable[Path]) -> str:
    """One hash of the contents of all these files, in order."""
    return hashlib.sha256("".join(map(content_hash, paths)).encode()).hexdigest()


def digest(samples: Sequence[Sample], fields: Iterable[str] = ()) -> str:
    """One hash of the samples in their order: pictures, groups, and captions in these fields.

    It is the same wherever the folder lies.
    """
    rows = [
        [sample.group, {name: sample.captions[name] for name in fields if name in sample.captions}]
        for sample in samples
    ]
    text = json.dumps(rows, sort_keys=True) + content_digest(sample.path for sample in samples)
    return hashlib.sha256(text.encode()).hexdigest()


class ImageCache:
    """The pictures of a data set as bytes [3, size, size], kept in memory while they fit."""

    def __init__(self, paths: Sequence[Path], size: int, memory: int = 4 << 30) -> None:
        self.paths = paths
        self.size = size
        self._room = memory // (3 * size * size)
        self._kept: dict[int, Tensor] = {}
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="pictures")

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """The pictures [B, 3, size, size] in [-1, 1], float32. A broken file is an UndustError."""
        pictures = torch.stack(list(self._readers.map(self._picture, indices)))
        return pictures.float() / 127.5 - 1

    def preload(self, observe: Observe) -> None:
        """Decodes the pictures that memory has room for, so that a broken one is found at once."""
        count = min(self._room, len(self.paths))
        for done, _ in enumerate(self._readers.map(self._picture, range(count)), 1):
            observe(done, count)

    def _picture(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        picture = from_image(read_image(self.paths[index]), (self.size, self.size))
        if len(self._kept) < self._room:
            self._kept[index] = picture
        return picture


def crop(pictures: Tensor, size: int, where: Tensor) -> Tensor:
    """Square crops [B, 3, size, size]; `where` [B, 2] in (0, 1) places their corners."""
    room = pictures.shape[-1] - size
    corners = (where * (room + 1)).floor().long().tolist()
    return torch.stack(
        [
            picture[:, top : top + size, left : left + size]
            for picture, (top, left) in zip(pictures, corners, strict=True)
        ]
    )
