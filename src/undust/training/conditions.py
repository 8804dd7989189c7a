"""Conditions of a training run beside the captions: class labels and maps.

Each reads the samples of a data source and gives the conditioner the inputs that sampling gives it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from undust.conditioning.maps import MAX_CLASSES, MapKind, colours_of
from undust.errors import LISTED, UndustError, printable
from undust.training.caches import ImageCache
from undust.training.configs import Config
from undust.training.data import Batch, RandomStream
from undust.training.sources import DataSample, TrainingData
from undust.training.views import View

SHOWN = 8  # samples of a preview
Drop = Annotated[float, Field(ge=0, le=1)]


class LabelsConfig(Config):
    """Class labels (Ho & Salimans 2022, section 3)."""

    column: str = Field(
        default="folder",
        description="column of the metadata with the class, text or a number; folder: the name of "
        "the folder that the picture is in",
    )
    drop: Drop = Field(default=0.1, description="share of samples trained without their class")


class MapConfig(Config):
    """A map beside each picture (Rombach et al. 2022, section 3.3)."""

    kind: Literal["segmentation", "depth", "picture"] = Field(
        description="segmentation: each colour is a class; depth: grey; picture: colours"
    )
    column: str = Field(
        description="column with the map or, in metadata, its file name; the name of the folder of "
        "maps beside a folder images"
    )
    classes: int | None = Field(
        default=None, ge=1, le=MAX_CLASSES, description="number of colours of a segmentation"
    )
    drop: Drop = Field(default=0.0, description="share of samples trained without the map")

    @model_validator(mode="after")
    def _counted(self) -> MapConfig:
        if (self.kind == "segmentation") != (self.classes is not None):
            raise ValueError("classes is needed for a segmentation, and for no other map")
        return self

    @property
    def channels(self) -> int:
        """Input channels of the denoiser."""
        return self.classes or {"depth": 1, "picture": 3}[self.kind]


class TrainingCondition(ABC):
    """One kind of condition of a run."""

    @property
    def digest(self) -> str:
        """A hash of the conditions of all samples; "" if they follow from the pictures."""
        return ""

    @property
    def notes(self) -> list[str]:
        """Lines for people on what was found in the data."""
        return []

    def inputs(self, batch: Batch) -> Mapping[str, Sequence[Any]]:  # noqa: ARG002
        """Fields of `ConditionInputs` for a batch, one entry for each sample."""
        return {}

    def channels(self, batch: Batch) -> Tensor | None:  # noqa: ARG002
        """Input channels [B, C, h, w] that stand before those of maps."""
        return None

    def label(self, batch: Batch) -> Tensor | None:  # noqa: ARG002
        """Labels [B] that are not classes."""
        return None

    @abstractmethod
    def options(self, sample: int) -> Mapping[str, Any]:
        """The same condition of one sample as options of a request, for previews."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """Arguments of `undust generate` that give such a condition, for an example."""

    def shown(self, sample: int) -> list[Image.Image]:  # noqa: ARG002
        """Pictures of the condition, shown beside the sample in previews."""
        return []


class LabelCondition(TrainingCondition):
    """The class of each sample. classes: their names, in order."""

    def __init__(self, config: LabelsConfig, data: TrainingData) -> None:
        """Raises UndustError if a sample has no class, and for a single class."""
        self.config, samples = config, data.samples
        labels = [sample.column(config.column) for sample in samples]
        if None in labels:
            missing = labels.count(None)
            columns = Counter(name for sample in samples for name in sample.columns)
            known = ", ".join(printable(name) for name, _ in columns.most_common(10)) or "none"
            raise UndustError(
                f"labels.column: {missing} of {len(labels)} pictures have no "
                f"{printable(config.column)}; columns of the data: {known}, and folder, the name "
                "of a picture's folder"
            )
        self.labels = [str(label) for label in labels]
        self.classes = tuple(sorted(set(self.labels), key=_natural))
        if len(self.classes) < 2:
            raise UndustError(
                f"labels.column: all pictures have the same {printable(config.column)}, "
                f"{printable(self.labels[0])}; to train without classes, leave out [labels]"
            )

    @property
    def digest(self) -> str:
        """A hash of the classes of all samples."""
        return sha256("\n".join(self.labels).encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """The classes, and the number of pictures of each."""
        counts = Counter(self.labels)
        known = [f"{printable(name)} ({counts[name]})" for name in self.classes[:LISTED]]
        return [f"classes: {', '.join(known)}{', …' if len(self.classes) > LISTED else ''}"]

    def inputs(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """The names of classes, None where they are dropped."""
        dropped = (batch.uniform(RandomStream.DROP_LABEL)[:, 0] < self.config.drop).tolist()
        names = [
            None if drop else self.labels[sample]
            for sample, drop in zip(batch.sample, dropped, strict=True)
        ]
        return {"label": names}

    def options(self, sample: int) -> Mapping[str, Any]:
        """The sample's class."""
        return {"label": self.labels[sample]}

    def arguments(self) -> list[str]:
        """The first class."""
        return ["--label", self.classes[0]]


class MapCondition(TrainingCondition):
    """The maps of each sample, in the order of the recipe."""

    def __init__(self, configs: Sequence[MapConfig], data: TrainingData) -> None:
        """Raises UndustError for absent and unusable maps."""
        self.configs, self.samples, self.views = configs, data.samples, data.views
        self.kinds = tuple(self._kind(config) for config in configs)
        self._maps = [
            ImageCache(data.source, read=_reader(config, kind))
            for config, kind in zip(configs, self.kinds, strict=True)
        ]

    @property
    def digest(self) -> str:
        """A hash of the maps of all samples, as they are trained with."""
        found = sha256()
        for maps in self._maps:
            for sample in range(len(self.samples)):
                found.update(maps.bytes([self.views.central(sample)]).numpy().data)
        return found.hexdigest()

    def inputs(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """Of each sample its maps, as bytes; None for those that are dropped."""
        chances = batch.uniform(RandomStream.DROP_MAP, len(self.configs))
        columns: list[list[Tensor | None]] = []
        views = self.views.drawn(batch)
        for place, (config, maps) in enumerate(zip(self.configs, self._maps, strict=True)):
            kept = (chances[:, place] >= config.drop).tolist()
            pixels = maps.bytes(views)
            columns.append(
                [each if keep else None for each, keep in zip(pixels, kept, strict=True)]
            )
        return {"maps": [*zip(*columns, strict=True)]}

    def options(self, sample: int) -> Mapping[str, Any]:
        """The sample's maps."""
        return {"maps": [self._image(config, sample) for config in self.configs]}

    def arguments(self) -> list[str]:
        """A file for each map."""
        return [part for kind in self.kinds for part in ("--map", f"{kind.kind}.png")]

    def shown(self, sample: int) -> list[Image.Image]:
        """The sample's maps."""
        side = self.views.square
        return [self._image(config, sample).convert("RGB").resize(side) for config in self.configs]

    def _image(self, config: MapConfig, sample: int) -> Image.Image:
        return self.samples[sample].beside(config.column)

    def _kind(self, config: MapConfig) -> MapKind:
        colours: tuple[str, ...] = ()
        if config.classes is not None:
            colours = colours_of(
                (image, view.size, view.place)
                for sample in range(len(self.samples))
                for image in [self._image(config, sample)]
                for view in self.views.of(sample)
            )
            if len(colours) > config.classes:
                raise UndustError(
                    f"maps: {config.column} has {len(colours)} colours, and classes is "
                    f"{config.classes}; each colour is a class"
                )
            colours += _unused(colours, config.classes - len(colours))
        return MapKind(kind=config.kind, colours=colours, guided=config.drop > 0)


def _reader(config: MapConfig, kind: MapKind) -> Callable[[DataSample, View], Tensor]:
    return lambda sample, view: kind.read(sample.beside(config.column), view.size, view.place)


def _unused(used: Sequence[str], count: int) -> tuple[str, ...]:
    """Colours for classes of which the data has no example."""
    free = (colour for code in range(0xFFFFFF, 0, -1) if (colour := f"#{code:06x}") not in used)
    return tuple(islice(free, count))


def _natural(name: str) -> tuple[int, str]:
    """Numbers before names, in numerical order."""
    return (int(name), "") if name.isdecimal() else (2**63, name)
