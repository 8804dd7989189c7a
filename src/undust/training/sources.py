"""Data sources: where the samples of a training run come from.

Tasks, caches and the loop use a `DataSource` and know no files. To add one: a class with the
members of `DataSource` that is made from a `DataConfig`, and the decorator `@source`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from undust.datasets import image_folder
from undust.diffusion.registry import Registry
from undust.errors import UndustError
from undust.formats.safetensors_file import content_hash
from undust.training.configs import DataConfig


class DataSample(Protocol):
    """One training sample."""

    @property
    def captions(self) -> Mapping[str, str]:
        """The captions, by column."""
        ...

    @property
    def group(self) -> str:
        """The name of the group that shares a draw, such as a concept."""
        ...

    def image(self) -> Image.Image:
        """The image, decoded at each call. Raises UndustError if it cannot be."""
        ...


class DataSource(Protocol):
    """Training samples in a fixed order."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines for people on samples that are left out."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, /) -> DataSample:
        """The sample at 0 ≤ index < len(self)."""
        ...

    def digest(self) -> str:
        """A hash of all images in their order; a run is resumed only with the same."""
        ...


SOURCES: Registry[Callable[[DataConfig], DataSource]] = Registry("data source")
"""`data.source` of a recipe -> its class. Raises UndustError if there is nothing to train on."""

S = TypeVar("S", bound=Callable[[DataConfig], DataSource])


def source(name: str) -> Callable[[S], S]:
    """Registers a data source."""

    def register(made: S) -> S:
        SOURCES[name] = made
        return made

    return register


@source("folder")
class ImageFolderSource:
    """The training split of a folder of images (`undust.datasets.image_folder`)."""

    def __init__(self, data: DataConfig) -> None:
        """Raises UndustError if there are none, and for unusable files unless they are skipped."""
        found = image_folder.scan(data.folder)
        self.samples = image_folder.usable(found, split="train", on_error=data.on_error)
        others = [sample for sample in found.samples if sample.split != "train"]
        if not self.samples:
            held_out = f"; {len(others)} are held out from training" if others else ""
            raise UndustError(f"{data.folder} has no training pictures{held_out}")
        notes = found.notes()
        skipped = len(found.broken) + len(found.samples) - len(others) - len(self.samples)
        if skipped:
            notes.append(f"skipped because they cannot be read: {skipped}; see undust data check")
        self.notes = [f"{data.folder}: {note}" for note in notes]

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, /) -> DataSample:
        """The sample at 0 ≤ index < len(self), in the order of the metadata or of file names."""
        return self.samples[index]

    def digest(self) -> str:
        """A hash of the files of all images, the same wherever the folder is."""
        return content_digest(sample.path for sample in self.samples)


def all_samples(source: DataSource) -> list[DataSample]:
    """Every sample of a source; no image is decoded."""
    return [source.sample(index) for index in range(len(source))]


def groups(samples: Sequence[DataSample], draw_by: str) -> list[list[int]]:
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


def data_digest(samples: Sequence[DataSample], images: str, fields: Iterable[str] = ()) -> str:
    """One hash of the digest of a source's images, its groups, and its captions in these fields."""
    rows = [
        [sample.group, {name: sample.captions[name] for name in fields if name in sample.captions}]
        for sample in samples
    ]
    text = json.dumps(rows, sort_keys=True) + images
    return hashlib.sha256(text.encode()).hexdigest()
