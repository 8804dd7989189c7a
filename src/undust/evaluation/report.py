"""The evaluation of a model on a data set: the figures that its kind has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from undust.datasets import image_folder
from undust.datasets.samples import Sample
from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.first_stage import Reconstruction, first_stage_figures, reconstruction
from undust.evaluation.generated import GeneratedFigures, PictureQuery, queries_of
from undust.evaluation.networks import SETS, FigureNetworks
from undust.evaluation.pictures import PictureSet
from undust.evaluation.processes import Processes
from undust.evaluation.queries import (
    caption_columns,
    held_out_queries,
    label_column,
    query_of,
    training_queries,
    without_captions,
)
from undust.evaluation.recall import NEARNESS, Recall, recall_by_kind
from undust.evaluation.sampling import Observe, SampledPictures, ignore
from undust.formats.components import load_first_stage
from undust.formats.feature_networks import PACKAGES
from undust.formats.safetensors_file import files_hash
from undust.pipeline import LatentDiffusion

HELD_OUT = "held-out pictures"
MOST = 1000  # pictures that are sampled of a model without text unless a number is given


class ModelReport(BaseModel):
    """The results, and all settings that they depend on.

    figures: all results; recall, first_stage: some of them in the form of earlier versions:
    recall of "training captions" and "held-out captions", and of each caption field if there are
    several ("training captions, text_ko"); first_stage, measured on the pictures named by
    first_stage_on, None for a model of pixels. pictures: number of distinct reference pictures;
    notes: on figures that are left out.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    model_hash: str
    data: str
    figures: tuple[Figure, ...]
    pictures: int
    recall: dict[str, Recall]
    nearness: str
    first_stage: Reconstruction | None
    first_stage_on: str
    steps: int
    guidance: float
    sampler: str
    schedule: str
    seed: int
    template: str
    seconds: float
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: what was measured, the figure, and on what."""
        return [(figure.what, figure.shown, figure.basis) for figure in self.figures]


class FirstStageReport(BaseModel):
    """The results of a first stage; fields as in `ModelReport`; size: width and height, pixels."""

    model_config = ConfigDict(frozen=True)

    model: str
    model_hash: str
    data: str
    size: tuple[int, int]
    figures: tuple[Figure, ...]
    first_stage: Reconstruction
    first_stage_on: str
    seconds: float
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: what was measured, the figure, and on what."""
        return [(figure.what, figure.shown, figure.basis) for figure in self.figures]


@dataclass(eq=False)
class Evaluation:
    """A model and all that is to be measured of it, before any picture is sampled.

    figures: of the pictures of "captions" and of "pictures" with the conditions of the data, which
    are kept in folders of these names.
    """

    model: LatentDiffusion
    data: str
    samples: list[Sample]
    networks: FigureNetworks
    figures: list[tuple[str, GeneratedFigures]]
    folder: Path | None

    @classmethod
    def plan(
        cls,
        model: LatentDiffusion,
        data: Path | str,
        *,
        captions: int = 200,
        fields: Sequence[str] = (),
        pictures: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        template: str = "{}",
        maps: Sequence[str] = (),
        networks: FigureNetworks | None = None,
        folder: Path | None = None,
        observe_real: Observe = ignore,
    ) -> Evaluation:
        """Chooses the figures by the model and the data.

        Caption recall, for a model with text: of `captions` training pictures, each of another
        group and in turn in the columns `fields`, and of all captions of the held-out pictures (the
        splits test and validation) in these. Without `fields`: in `text`, for training pictures
        also in `text_ko`; else as `caption_column` chooses. Distances of sets: of those pictures,
        or of `pictures` others with the conditions of the data set in a random order. template: put
        around each caption, such as "a picture of a {}"; maps: columns of the data with the files
        of the model's maps; networks: those of the figures; folder: where the pictures are kept;
        observe_real: called with numbers of real pictures. Raises UndustError for a folder that is
        not a data set or lacks what the model is conditioned on.
        """
        if captions < 0:
            raise UndustError(f"captions: has to be at least 0, not {captions}")
        if pictures is not None and pictures < 2:
            raise UndustError(f"pictures: has to be at least 2, not {pictures}")
        if len(maps) != len(model.maps):
            kinds = ", ".join(kind.kind for kind in model.maps) or "none"
            raise UndustError(
                f"maps: {model.name} takes {kinds}; {len(maps)} given; --map COLUMN names the "
                "column of the metadata with the files of each"
            )
        samples = image_folder.read(data)
        real = PictureSet.of_samples(samples, model.size)
        training, held_out = (fields, fields) if fields else caption_columns(samples)
        ask = partial(query_of, samples, label_column(model, samples, data), maps, training)
        texts = bool(model.texts)
        queries: list[PictureQuery] = []
        if texts:
            queries = [
                *training_queries(samples, training, captions, seed, ask),
                *held_out_queries(samples, held_out, ask),
            ]
            if not queries:
                raise UndustError(without_captions(samples, training, data))
        elif pictures is None:
            pictures = max(2, min(MOST, len(samples)))
        own = {"steps": steps, "guidance": guidance}
        figures = partial(
            GeneratedFigures,
            real,
            networks=networks,
            seed=seed,
            template=template,
            options={name: value for name, value in own.items() if value is not None},
            observe_real=observe_real,
        )
        chosen: list[tuple[str, GeneratedFigures]] = []
        if queries:
            chosen.append(("captions", figures(queries, sets=pictures is None)))
        if pictures is not None:
            drawn = queries_of(pictures, len(samples), seed, ask)
            chosen.append(("pictures", figures(drawn, recall=False)))
        return cls(model, str(data), samples, networks or FigureNetworks(), chosen, folder)

    @property
    def sampled(self) -> list[SampledPictures]:
        """The pictures of each set of figures, sampled when they are asked for."""
        return [
            figures.sampled(self.model, self.folder / name if self.folder else None)
            for name, figures in self.figures
        ]

    def check(self) -> None:
        """Raises UndustError if there is nothing to measure, for want of feature networks."""
        if not self._has_first_stage and not any(figures.measured for _, figures in self.figures):
            raise UndustError(
                f"nothing of {self.model.name} can be measured without a feature network: "
                f"{PACKAGES[SETS].install}, or --features NAME|PATH"
            )

    @property
    def _has_first_stage(self) -> bool:
        return self.model.autoencoder.downsampling_factor > 1

    def sample(
        self,
        part: tuple[int, int] | None = None,
        observe: Observe = ignore,
        processes: Processes | None = None,
    ) -> int:
        """Samples pictures into the folder; the number that others have to sample.

        part: as for `SampledPictures.sample`; None for all that are measured here; processes: None
        for this process alone.
        """
        sets = self.sampled
        if part is None:
            part, pairs = (1, 1), zip(self.figures, sets, strict=True)
            sets = [each for (_, figures), each in pairs if figures.measured]
        if processes:
            batches = [batch for each in sets for batch in each.missing(part)]
            processes.sample(batches, observe)
            observe = ignore
        done, total = 0, sum(each.steps for each in sets)
        rest = 0
        for each in sets:
            rest += each.sample(part, partial(_further, observe, done, total))
            done += each.steps
        return rest

    def report(self, observe: Observe = ignore, observe_real: Observe = ignore) -> ModelReport:
        """Samples what is missing, and measures; observe: called with numbers of steps.

        Pictures without any figure are not sampled. Raises UndustError if there is no figure.
        """
        self.check()
        began = time.monotonic()
        model, sets = self.model, self.sampled
        found: list[Figure] = []
        done, total = 0, sum(each.steps for each in sets)
        for (_, figures), each in zip(self.figures, sets, strict=True):
            found += figures.measure(each, partial(_further, observe, done, total))
            done += each.steps
        stage: list[Figure] = []
        tests = [sample for sample in self.samples if sample.split != "train"]
        on = HELD_OUT if tests else "pictures"
        if self._has_first_stage:
            pictures = PictureSet.of_samples(tests or self.samples, model.size, on)
            stage = first_stage_figures(model.autoencoder, pictures, self.networks, observe_real)
        first, (_, any_figures) = sets[0].recipes[0], self.figures[0]
        recall = [(figures, name) for name, figures in self.figures if figures.recall]
        return ModelReport(
            model=model.name,
            model_hash=model.hash,
            data=self.data,
            figures=(*found, *(_of_first_stage(figure) for figure in stage)),
            pictures=len(recall[0][0].reference if recall else any_figures.real),
            recall=recall_by_kind(found),
            nearness=NEARNESS,
            first_stage=reconstruction(stage) if stage else None,
            first_stage_on=on,
            steps=first.steps,
            guidance=first.guidance,
            sampler=first.sampler,
            schedule=first.schedule,
            seed=any_figures.seed,
            template=any_figures.template,
            seconds=round(time.monotonic() - began, 1),
            notes=self.networks.notes,
        )


def evaluate(
    model: LatentDiffusion,
    data: Path | str,
    *,
    observe: Observe = ignore,
    observe_real: Observe = ignore,
    **options: Any,
) -> ModelReport:
    """Generates pictures and measures; the options are those of `Evaluation.plan`.

    observe: called after each step of a batch with the number of picture-steps done and of all.
    """
    planned = Evaluation.plan(model, data, observe_real=observe_real, **options)
    return planned.report(observe, observe_real)


def evaluate_first_stage(
    folder: Path,
    data: Path | str,
    networks: FigureNetworks | None = None,
    observe: Observe = ignore,
) -> FirstStageReport:
    """The figures of the first stage in a folder, at the size in its configuration.

    Measured on the held-out pictures of a data set, or on all without any; observe: called with
    numbers of pictures. Raises UndustError for a folder that is not a first stage, and as
    `image_folder.read`.
    """
    began = time.monotonic()
    networks = networks or FigureNetworks()
    autoencoder = load_first_stage(folder)
    samples = image_folder.read(data)
    tests = [sample for sample in samples if sample.split == "test"]
    on = HELD_OUT if tests else "pictures"
    pictures = PictureSet.of_samples(tests or samples, autoencoder.image_size, on)
    figures = first_stage_figures(autoencoder, pictures, networks, observe)
    return FirstStageReport(
        model=folder.resolve().name,
        model_hash=files_hash(sorted(folder.glob("*.safetensors")))[:10],
        data=str(data),
        size=autoencoder.image_size,
        figures=tuple(_of_first_stage(figure) for figure in figures),
        first_stage=reconstruction(figures),
        first_stage_on=on,
        seconds=round(time.monotonic() - began, 1),
        notes=networks.notes,
    )


def _further(observe: Observe, before: int, total: int, done: int, _all: int) -> None:
    """Observes a part of the work that begins after `before`."""
    observe(before + done, total)


def _of_first_stage(figure: Figure) -> Figure:
    return figure.model_copy(update={"quantity": f"first stage: {figure.quantity}"})
