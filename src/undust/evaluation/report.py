"""The evaluation of a model on a data set: caption recall and first stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from undust.conditioning.prompt import escape
from undust.datasets import image_folder
from undust.datasets.image_folder import Sample
from undust.diffusion.noise import uniform
from undust.errors import UndustError
from undust.evaluation.first_stage import Reconstruction, measure
from undust.evaluation.recall import NEARNESS, ReferenceSet
from undust.formats.components import load_first_stage
from undust.formats.safetensors_file import files_hash
from undust.generation import loop
from undust.pictures import from_image
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe

HELD_OUT = "held-out pictures"
LANGUAGES = ("text", "text_ko")  # caption fields of training captions, used in turn


class Recall(BaseModel):
    """Shares of captions whose own picture is the nearest, or among the five nearest."""

    model_config = ConfigDict(frozen=True)

    captions: int
    top1: float
    top5: float


class ModelReport(BaseModel):
    """The results, and all settings that they depend on.

    pictures: number of distinct reference pictures; recall: of "training captions" and "held-out
    captions", and of each caption field if there are several ("training captions, text_ko");
    first_stage: measured on the pictures named by first_stage_on.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    model_hash: str
    data: str
    pictures: int
    recall: dict[str, Recall]
    nearness: str
    first_stage: Reconstruction
    first_stage_on: str
    steps: int
    guidance: float
    sampler: str
    schedule: str
    seed: int
    template: str
    seconds: float

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: what was measured, the figure, and on how much."""
        rows: list[tuple[str, str, str]] = []
        for kind, recall in self.recall.items():
            of = f"{recall.captions} captions among {self.pictures} pictures"
            rows.append((f"{kind}: right picture nearest", f"{recall.top1:.1%}", of))
            rows.append((f"{kind}: among the nearest 5", f"{recall.top5:.1%}", of))
        return rows + _first_stage_rows(self.first_stage, self.first_stage_on)


class FirstStageReport(BaseModel):
    """The results of a first stage; fields as in `ModelReport`; size: width and height, pixels."""

    model_config = ConfigDict(frozen=True)

    model: str
    model_hash: str
    data: str
    size: tuple[int, int]
    first_stage: Reconstruction
    first_stage_on: str
    seconds: float

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: what was measured, the figure, and on how much."""
        return _first_stage_rows(self.first_stage, self.first_stage_on)


class CaptionQuery(NamedTuple):
    """A caption to generate a picture of, and the picture that it belongs to."""

    kind: str
    field: str
    caption: str
    path: Path


def evaluate(
    model: LatentDiffusion,
    data: Path | str,
    *,
    captions: int = 200,
    held_out: Sequence[str] = ("text",),
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    template: str = "{}",
    observe: Callable[[int, int], None] | None = None,
) -> ModelReport:
    """Generates pictures of captions of a data set and measures recall and the first stage.

    Captions are those of `captions` training pictures, each of another group and in turn English
    and Korean where there is Korean, and all captions of the held-out pictures (the splits test and
    validation) in the fields `held_out`. The first stage is measured on the held-out pictures, or
    on all pictures without any. template: put around each caption, such as "a picture of a {}";
    observe: called after each step of a batch with the number of picture-steps done and of all.
    Raises UndustError for a folder that is not a data set or has no captions, and for a template
    without {}.
    """
    began = time.monotonic()
    if captions < 0:
        raise UndustError(f"captions: has to be at least 0, not {captions}")
    if "{}" not in template:
        raise UndustError(f"template: {template!r} has no {{}} for the caption")
    samples = image_folder.read(data)
    queries = [*_training(samples, captions, seed), *_held_out(samples, held_out)]
    if not queries:
        raise UndustError(f"{data} has no captions; they belong in {image_folder.METADATA}")
    recipes = [
        recipe
        for place, query in enumerate(queries)
        for recipe in model.recipes(
            template.replace("{}", escape(query.caption)),
            steps=steps,
            guidance=guidance,
            seed=seed + place,
        )
    ]
    reference = ReferenceSet([sample.path for sample in samples], model.size)
    ranks = _ranks(model, recipes, reference, [query.path for query in queries], observe)
    tests = [sample.path for sample in samples if sample.split != "train"]
    first = recipes[0]
    return ModelReport(
        model=model.name,
        model_hash=model.hash,
        data=str(data),
        pictures=len(reference),
        recall=_recall(queries, ranks),
        nearness=NEARNESS,
        first_stage=measure(model.autoencoder, tests or list(reference.number), model.size),
        first_stage_on=HELD_OUT if tests else "pictures",
        steps=first.steps,
        guidance=first.guidance,
        sampler=first.sampler,
        schedule=first.schedule,
        seed=seed,
        template=template,
        seconds=round(time.monotonic() - began, 1),
    )


def evaluate_first_stage(folder: Path, data: Path | str) -> FirstStageReport:
    """PSNR and SSIM of the first stage in a folder, at the size in its configuration.

    Measured on the held-out pictures of a data set, or on all without any. Raises UndustError for a
    folder that is not a first stage, and as `image_folder.read`.
    """
    began = time.monotonic()
    autoencoder = load_first_stage(folder)
    samples = image_folder.read(data)
    tests = [sample.path for sample in samples if sample.split == "test"]
    return FirstStageReport(
        model=folder.resolve().name,
        model_hash=files_hash(sorted(folder.glob("*.safetensors")))[:10],
        data=str(data),
        size=autoencoder.image_size,
        first_stage=measure(
            autoencoder, tests or [s.path for s in samples], autoencoder.image_size
        ),
        first_stage_on=HELD_OUT if tests else "pictures",
        seconds=round(time.monotonic() - began, 1),
    )


def _first_stage_rows(figures: Reconstruction, on: str) -> list[tuple[str, str, str]]:
    of = f"{figures.pictures} {on}"
    return [
        ("first stage: PSNR", f"{figures.psnr:.2f} dB", of),
        ("first stage: SSIM", f"{figures.ssim:.3f}", of),
    ]


def _training(samples: Iterable[Sample], count: int, seed: int) -> list[CaptionQuery]:
    """Captions of at most `count` groups, in a random order by the seed."""
    concepts: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train" and any(field in sample.captions for field in LANGUAGES):
            concepts.setdefault(sample.group, []).append(sample)
    drawn = uniform(seed, (0, 0, 0), (len(concepts), 2))
    members = list(concepts.values())
    queries: list[CaptionQuery] = []
    for which in drawn[:, 0].argsort()[:count].tolist():
        sample = members[which][int(drawn[which, 1] * len(members[which]))]
        fields = [field for field in LANGUAGES if field in sample.captions]
        field = fields[len(queries) % len(fields)]
        queries.append(
            CaptionQuery("training captions", field, sample.captions[field], sample.path)
        )
    return queries


def _held_out(samples: Iterable[Sample], fields: Sequence[str]) -> list[CaptionQuery]:
    return [
        CaptionQuery("held-out captions", field, sample.captions[field], sample.path)
        for sample in samples
        if sample.split != "train"
        for field in fields
        if field in sample.captions
    ]


def _ranks(
    model: LatentDiffusion,
    recipes: list[Recipe],
    reference: ReferenceSet,
    wanted: list[Path],
    observe: Callable[[int, int], None] | None,
) -> list[int]:
    """For each recipe's picture the number of reference pictures nearer than the wanted one."""
    ranks: list[int] = []
    done, total = 0, sum(recipe.total_steps for recipe in recipes)

    def observed(step: loop.Step) -> loop.Step:
        nonlocal done
        done += len(step.x)
        if observe:
            observe(done, total)
        return step

    for batch in loop.batches(model, recipes):
        *_, last = map(observed, loop.sample_batch(model, batch))
        pictures = loop.decode(batch, last)
        generated = torch.stack([from_image(picture.image, model.size) for picture in pictures])
        paths = wanted[len(ranks) : len(ranks) + len(batch)]
        ranks += reference.ranks(generated / 127.5 - 1, paths)
    return ranks


def _recall(queries: Sequence[CaptionQuery], ranks: Sequence[int]) -> dict[str, Recall]:
    """By kind of caption, and by field for kinds with several fields."""
    groups: dict[str, dict[str, list[int]]] = {}
    for query, rank in zip(queries, ranks, strict=True):
        groups.setdefault(query.kind, {}).setdefault(query.field, []).append(rank)
    recall: dict[str, Recall] = {}
    for kind, fields in groups.items():
        recall[kind] = _shares([rank for ranks in fields.values() for rank in ranks])
        if len(fields) > 1:
            recall |= {f"{kind}, {name}": _shares(ranks) for name, ranks in fields.items()}
    return recall


def _shares(ranks: Sequence[int]) -> Recall:
    return Recall(
        captions=len(ranks),
        top1=sum(rank < 1 for rank in ranks) / len(ranks),
        top5=sum(rank < 5 for rank in ranks) / len(ranks),
    )
