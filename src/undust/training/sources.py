"""Data sources: the origin of the samples of a training run.

Tasks, caches and the loop use a `DataSource` and know no files; `TrainingData` splits it. To add
one: a class with the members of `DataSource` that is made from a `DataConfig`, and the decorator
`@source`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from PIL import Image

from undust.datasets import films, image_folder
from undust.datasets.encoded import Encodable, EncodedData, is_encoded
from undust.datasets.films import Frame, frames_of
from undust.datasets.metadata import FEW
from undust.datasets.samples import Contents, Sample, alike, captions_in, few
from undust.diffusion.registry import Registry
from undust.errors import UndustError, printable
from undust.formats.safetensors_file import content_hash, joined_hash
from undust.training.buckets import BucketRule, Size
from undust.training.configs import DataConfig
from undust.training.data import CPU, SampleOrder
from undust.training.views import Views

VALIDATION_SEED = 2**64 - 1  # of every run's validation loss
MAX_HELD_OUT = 256  # samples of a validation loss


class DataSample(Encodable, Protocol):
    """One training sample: what its encoding keeps, and its images."""

    @property
    def maps(self) -> Mapping[str, Path]:
        """Pictures beside it that no column of text names, by column."""
        ...

    def image(self) -> Image.Image:
        """The image, decoded at each call. Raises UndustError if it cannot be."""
        ...

    def has_beside(self, column: str, /) -> bool:
        """Whether a column has, or names, an image."""
        ...

    def beside(self, column: str, /) -> Image.Image:
        """The image in a column or in the file that it names; UndustError if it cannot be read."""
        ...

    def size_beside(self, column: str, /) -> tuple[int, int]:
        """Width and height of `beside`, pixels, without decoding; raises UndustError as it."""
        ...


class DataSource(Protocol):
    """Samples of all splits in a fixed order."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines for people on samples that are left out."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, /) -> DataSample:
        """The sample at 0 ≤ index < len(self)."""
        ...

    def digest(self, indices: Sequence[int], /) -> str:
        """A hash of these images in their order; a run is resumed only with the same."""
        ...


SOURCES: Registry[Callable[[DataConfig], DataSource]] = Registry("data source")
"""`data.source` of a recipe -> its class."""

S = TypeVar("S", bound=Callable[[DataConfig], DataSource])


def source(name: str) -> Callable[[S], S]:
    """Registers a data source."""

    def register(made: S) -> S:
        SOURCES[name] = made
        return made

    return register


def _usable(found: Contents, data: DataConfig) -> tuple[list[Sample], list[str]]:
    """The samples that can be used, and lines on the others."""
    samples = image_folder.usable(found, on_error=data.on_error)
    notes = found.notes()
    skipped = len(found.broken) + len(found.samples) - len(samples)
    if skipped:
        notes.append(f"skipped because they cannot be read: {skipped}; see undust data check")
    return samples, [f"{data.folder}: {note}" for note in notes]


@source("folder")
class ImageFolderSource:
    """A folder of images (`undust.datasets.image_folder`)."""

    def __init__(self, data: DataConfig) -> None:
        """Raises UndustError for a folder without images and, unless they are skipped, bad ones."""
        self.samples, self.notes = _usable(image_folder.scan(data.folder), data)

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, /) -> Sample:
        """The sample at 0 ≤ index < len(self), in the order of the metadata or of file names."""
        return self.samples[index]

    def digest(self, indices: Sequence[int], /) -> str:
        """A hash of these images' files, the same wherever the folder is."""
        return joined_hash(self.samples[index].content_hash() for index in indices)


@source("films")
class FilmSource:
    """The frames of the films in a folder (`undust.datasets.films`)."""

    def __init__(self, data: DataConfig) -> None:
        """Raises UndustError as `ImageFolderSource` and the functions of `films`."""
        found = films.scan(data.folder)
        films.need_package(found)
        films.check_columns(data.folder, found.unread)
        readable, self.notes = _usable(found, data)
        samples = readable
        if data.on_error == "skip":
            samples = [sample for sample in readable if not films.fault(sample)]
        if skipped := len(readable) - len(samples):
            self.notes.append(
                f"{data.folder}: skipped because not all of their frames can be read: {skipped}"
            )
        self.frames = frames_of(samples)
        if uneven := films.of_several_sizes(self.frames):
            self.notes.append(
                f"{data.folder}: films whose frames have different sizes: {few(uneven)}"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, index: int, /) -> Frame:
        """The frame at 0 ≤ index < len(self), film by film."""
        return self.frames[index]

    def digest(self, indices: Sequence[int], /) -> str:
        """A hash of these frames, the same wherever the folder is."""
        return joined_hash(self.frames[index].content_hash() for index in indices)


@source("encoded")
class EncodedSource(EncodedData):
    """A folder that `undust data encode` has written."""

    def __init__(self, data: DataConfig) -> None:
        """Raises UndustError for a folder without a whole index."""
        super().__init__(data.folder)


class SelectedSource:
    """Some of the samples of a data source, and a note on the others."""

    def __init__(self, source: DataSource, indices: Sequence[int], note: str) -> None:
        self._source, self._indices = source, indices
        self.notes = [*source.notes, note]

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int, /) -> DataSample:
        """The sample at 0 ≤ index < len(self)."""
        return self._source.sample(self._indices[index])

    def digest(self, indices: Sequence[int], /) -> str:
        """A hash of these images, as that of the source."""
        return self._source.digest([self._indices[index] for index in indices])


def with_maps(source: DataSource, columns: Sequence[str], *, skip: bool) -> DataSource:
    """The samples of a source that have a map in each column; skip: one that can be read.

    Raises UndustError if others are not to be skipped, or there are no samples with maps.
    """
    for column in columns:
        samples = [source.sample(index) for index in range(len(source))]
        named = [index for index, sample in enumerate(samples) if sample.has_beside(column)]
        have = [index for index in named if not skip or _opens(samples[index], column)]
        unlike = _unlike([samples[index] for index in have], column)
        if len(have) == len(samples):
            if unlike:
                source = SelectedSource(source, have, unlike)
            continue
        others = sorted({*range(len(samples))} - {*have})
        names = [samples[index].group for index in others]
        lack = f"{len(names)} of {len(samples)} pictures have no {printable(column)}"
        if len(have) < len(named):
            lack += " that can be read"
        if not have:
            known = Counter(name for sample in samples for name in (*sample.columns, *sample.maps))
            listed = ", ".join(printable(name) for name, _ in known.most_common(10)) or "none"
            name = printable(column)
            raise UndustError(
                f"maps: {lack}; columns of the data: {listed}. Maps are in a folder {name} beside "
                f"a folder images, or metadata.jsonl has their files in a column {name}"
            )
        lack += f": {', '.join(map(printable, names[:FEW]))}{', …' if len(names) > FEW else ''}"
        if not skip:
            raise UndustError(f'maps: {lack}; data.on_error = "skip" trains without them')
        source = SelectedSource(source, have, f"not trained on: {lack}")
        if unlike:
            source = SelectedSource(source, range(len(have)), unlike)
    return source


def _unlike(samples: Sequence[DataSample], column: str) -> str:
    """A line on maps that have not the proportions of their pictures, "" if there are none."""
    sizes = ((sample, sample.size(), sample.size_beside(column)) for sample in samples)
    found = [each for each in sizes if not alike(*each[1:])]
    if not found:
        return ""
    first, own, other = found[0]
    return (
        f"maps: {len(found)} of {len(samples)} pictures have a {printable(column)} of other "
        f"proportions, such as {printable(first.group)}, {own[0]}x{own[1]} with "
        f"{other[0]}x{other[1]}; each is cropped by itself, so that the two may not fit"
    )


def _opens(sample: DataSample, column: str) -> bool:
    try:
        sample.beside(column)
    except UndustError:
        return False
    return True


class TrainingData:
    """The samples of a run: those it trains on, and those held out for its validation loss.

    samples: all of the source; train, held_out: indices into them. order, validation: the two in
    the order in which they are drawn, validation with numbers that do not depend on `seed`. views:
    the parts of the pictures that are trained on; encoded: the folder of encoded data, or None.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        caption_fields: Collection[str] = (),
        device: torch.device = CPU,
        maps: Sequence[str] = (),
        buckets: BucketRule | None = None,
    ) -> None:
        """Raises UndustError if there is nothing to train on, or to hold out as configured.

        caption_fields: columns of captions that are part of the digests; device: of the random
        numbers; maps: columns in which every sample has to have a map; buckets: of the network,
        None for one that takes squares alone.
        """
        found = config.source == "folder" and is_encoded(config.folder)
        source = SOURCES["encoded" if found else config.source](config)
        self.encoded = config.folder if isinstance(source, EncodedSource) else None
        self.source = with_maps(source, maps, skip=config.on_error == "skip")
        self.samples = [self.source.sample(index) for index in range(len(self.source))]
        self.train, self.held_out = split_samples(self.samples, config.held_out)
        if config.limit:
            self.train = _limited(self.samples, self.train, config.limit)
        if not self.train:
            others = len(self.samples)
            why = f"; {others} are held out from training" if others else " that can be read"
            raise UndustError(f"{config.folder} has no training pictures{why}")
        self.order = SampleOrder(groups(self.samples, self.train, config.draw_by), seed, device)
        self.validation = (
            SampleOrder([[index] for index in self.held_out], VALIDATION_SEED, device)
            if self.held_out
            else None
        )
        self._fields = tuple(caption_fields)
        self.views = Views(config, self._size, self.held_out)
        if config.buckets:
            self.views.fill(self.train, buckets)
            assert buckets
            self.order = buckets.order(self.order, self.views.sizes)
            if self.validation:
                self.validation = buckets.order(self.validation, self.views.sizes)

    @property
    def notes(self) -> list[str]:
        """Lines for people on samples that are left out."""
        return [*self.source.notes, *self.views.notes]

    @cached_property
    def image_digests(self) -> tuple[str, str]:
        """Digests of the images trained on, and of those held out."""
        return self.source.digest(self.train), self.source.digest(self.held_out)

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of the images, their groups and captions, for the checkpoints."""
        train, held_out = self.image_digests
        digests = {"data": data_digest(self.training_samples, train, self._fields)}
        if self.held_out:
            samples = [self.samples[index] for index in self.held_out]
            digests["validation"] = data_digest(samples, held_out, self._fields)
        return digests

    def _size(self, sample: int) -> Size:
        return self.samples[sample].size()

    @property
    def training_samples(self) -> list[DataSample]:
        """The samples trained on."""
        return [self.samples[index] for index in self.train]


def split_samples(samples: Sequence[DataSample], share: float) -> tuple[list[int], list[int]]:
    """Indices of the samples trained on, and of those of the validation loss.

    share: of the groups in the training split that is held out from it, by a hash of their names,
    so that the choice does not depend on other samples; 0: the split "validation" is held out, or
    "test" if there is none. Of many held-out samples those with the smallest hashes are used.
    Raises UndustError if the share is less than one group.
    """
    places = [_hash_place(sample.group) for sample in samples]
    train = [k for k, sample in enumerate(samples) if sample.split == "train"]
    if share:
        held_out = [k for k in train if places[k] < share]
        if train and not held_out:
            least = min(places[k] for k in train)
            raise UndustError(
                f"data.held_out = {share:g} holds out no picture of {len(train)}; "
                f"{math.ceil(least * 1000 + 1) / 1000:g} would"
            )
        train = [k for k in train if places[k] >= share]
    else:
        held_out = [k for k, sample in enumerate(samples) if sample.split == "validation"]
        held_out = held_out or [k for k, sample in enumerate(samples) if sample.split == "test"]
    return train, _chosen(samples, held_out, MAX_HELD_OUT)


def _chosen(samples: Sequence[DataSample], indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of the indices, by the hashes of their groups' names."""
    return sorted(indices, key=lambda index: _hash_place(samples[index].group))[:count]


def _limited(samples: Sequence[DataSample], indices: Sequence[int], count: int) -> list[int]:
    """As `_chosen`, in their order; of films at most `count`, with all of their frames."""
    parts: dict[object, list[int]] = {}
    for index in indices:
        sample = samples[index]
        parts.setdefault(sample.film if isinstance(sample, Frame) else index, []).append(index)
    chosen = {*_chosen(samples, [own[0] for own in parts.values()], count)}
    return sorted(index for own in parts.values() if own[0] in chosen for index in own)


def groups(samples: Sequence[DataSample], indices: Sequence[int], draw_by: str) -> list[list[int]]:
    """The indices of samples that share a draw, in order of first appearance."""
    if draw_by == "picture":
        return [[index] for index in indices]
    by_name: dict[str, list[int]] = {}
    for index in indices:
        by_name.setdefault(samples[index].group, []).append(index)
    return list(by_name.values())


def content_digest(paths: Iterable[Path]) -> str:
    """One hash of the contents of all these files, in order."""
    return joined_hash(map(content_hash, paths))


def data_digest(samples: Sequence[DataSample], images: str, fields: Collection[str] = ()) -> str:
    """One hash of the digest of a source's images, its groups, and its captions in these fields."""
    rows = [[sample.group, captions_in(sample, fields)] for sample in samples]
    text = json.dumps(rows, sort_keys=True) + images
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_place(name: str) -> float:
    """A number in [0, 1) that depends on a name alone, evenly spread."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
