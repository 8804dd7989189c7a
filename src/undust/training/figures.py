"""Figures of the averaged weights while a run trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import Field
from torch import Tensor

from undust.diffusion.noise import uniform
from undust.evaluation.figure import Figure
from undust.evaluation.first_stage import first_stage_figures
from undust.evaluation.generated import GeneratedFigures, PictureQuery
from undust.evaluation.networks import FigureNetworks
from undust.evaluation.pictures import PictureSet
from undust.networks.base import FirstStageNetwork
from undust.pictures import from_image
from undust.pipeline import LatentDiffusion
from undust.training.configs import Config, Place
from undust.training.sources import TrainingData

SEED = 0  # of every run's figures, so that they are comparable
LEAST = 4  # pictures that precision and recall need


class FiguresConfig(Config):
    """Figures of the averaged weights during training, as `undust evaluate` measures them."""

    every: int = Field(default=0, ge=0, description="steps between figures; 0: none")
    pictures: int = Field(
        default=256, ge=LEAST, description="number of pictures, generated and real ones"
    )
    steps: int = Field(default=20, gt=0, le=1000, description="sampling steps of a picture")
    features: str | None = Field(
        default=None,
        description="feature network of distances of sets: efficientnet-lite0, vgg16, a path, "
        "org/name on the hub, or none; left out: efficientnet-lite0 if it is installed",
    )
    perceptual: str | None = Field(
        default=None,
        description="feature network of a first stage's perceptual distance; left out: vgg16 if "
        "it is installed",
    )

    heads: Place | None = Field(
        default=None,
        description="file with LPIPS' weights for `perceptual`, or org/name on the hub",
    )
    clip: Place | None = Field(
        default=None, description="CLIP folder for the CLIP score, or org/name on the hub"
    )

    def networks(self) -> FigureNetworks:
        """The networks. Raises UndustError for those that do not exist."""
        heads, clip = (str(place) if place else None for place in (self.heads, self.clip))
        return FigureNetworks.load(self.features, self.perceptual, heads, clip)

    @property
    def brief(self) -> FiguresConfig:
        """The same with the least work."""
        return self.model_copy(update={"pictures": LEAST, "steps": 1})


def of_first_stage(
    network: FirstStageNetwork,
    size: tuple[int, int],
    data: TrainingData,
    config: FiguresConfig,
    networks: FigureNetworks,
) -> Callable[[], list[Figure]]:
    """Measures reconstructions of held-out pictures, or of training pictures without any.

    size: width and height of the pictures.
    """
    pictures, _ = real_pictures(data, size, config.pictures, held_out=True)
    return lambda: first_stage_figures(network, pictures, networks)


def of_diffusion(
    model: LatentDiffusion,
    data: TrainingData,
    size: tuple[int, int],
    ask: Callable[[int], PictureQuery],
    config: FiguresConfig,
    networks: FigureNetworks,
) -> Callable[[], list[Figure]]:
    """Measures pictures generated for the conditions of training pictures, against these.

    size: width and height of the pictures; ask: the query for a sample. With captions their recall
    is measured too.
    """
    real, samples = real_pictures(data, size, config.pictures, held_out=False)
    queries = [replace(ask(sample), picture=place) for place, sample in enumerate(samples)]
    # A few training pictures may be all that there are: they are asked for again.
    queries = [queries[place % len(queries)] for place in range(config.pictures)]
    options = {"steps": config.steps}
    figures = GeneratedFigures(real, queries, networks, seed=SEED, options=options)
    return lambda: figures(model)


def real_pictures(
    data: TrainingData, size: tuple[int, int], count: int, *, held_out: bool
) -> tuple[PictureSet, Sequence[int]]:
    """Real pictures, and their indices among the samples: a choice that is the same in all runs."""
    indices, of = data.train, "training pictures"
    if held_out and data.held_out:
        indices, of = data.held_out, "held-out pictures"
    order = uniform(SEED, (2, 0, 0), (len(indices),)).argsort().tolist()[:count]
    chosen = [indices[place] for place in order]

    def read(place: int) -> Tensor:
        return from_image(data.samples[chosen[place]].image(), size)

    return PictureSet(len(chosen), read, size, of), chosen
