"""The conditions that an evaluation takes from a data set: captions, classes, maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undust.datasets import image_folder
from undust.datasets.samples import FOLDER, Sample, caption_column, captions_in
from undust.diffusion.noise import uniform
from undust.errors import UndustError, printable
from undust.evaluation.generated import PictureQuery
from undust.pipeline import LatentDiffusion

LANGUAGES = ("text", "text_ko")  # columns of training captions, unless others are named


def query_of(
    samples: Sequence[Sample],
    label: str | None,
    maps: Sequence[str],
    fields: Sequence[str],
    picture: int,
    kind: str = "",
    column: str = "",
) -> PictureQuery:
    """The conditions of a real picture; column: of its caption, else the first it has of fields."""
    sample = samples[picture]
    options: dict[str, Any] = {}
    if label is not None:
        options["label"] = sample.column(label)
    if maps:
        options["maps"] = [sample.beside(name) for name in maps]
    captions = captions_in(sample, (column,) if column else fields)
    return PictureQuery(next(iter(captions.values()), ""), kind, column, picture, options)


def caption_columns(samples: Sequence[Sample]) -> tuple[Sequence[str], Sequence[str]]:
    """The columns of training captions and of held-out ones, if none are named."""
    counts = Counter(name for sample in samples for name in sample.captions)
    if any(name in counts for name in LANGUAGES):
        return LANGUAGES, LANGUAGES[:1]
    found = [caption_column(counts)] if counts else []
    return found, found


def without_captions(samples: Sequence[Sample], fields: Sequence[str], data: Path | str) -> str:
    """An error for data without captions in these columns."""
    columns = sorted({name for sample in samples for name in sample.captions})
    if columns:
        known = ", ".join(map(printable, columns))
        return f"{data} has no captions in {', '.join(map(printable, fields))}; it has {known}"
    return (
        f"{data} has no captions; they belong in {image_folder.METADATA}, or into cat.txt for "
        f"cat.png; --caption {FOLDER} takes the names of folders"
    )


def label_column(model: LatentDiffusion, samples: Sequence[Sample], data: Path | str) -> str | None:
    """The column of the data that has the model's classes; None for a model without classes."""
    if not model.classes:
        return None
    columns = dict.fromkeys(["folder", *(name for sample in samples for name in sample.columns)])
    for column in columns:
        if all(sample.column(column) in model.classes for sample in samples):
            return column
    raise UndustError(
        f"{data} has no column with the model's classes, such as {model.classes[0]}; columns: "
        f"{', '.join(columns)}"
    )


def training_queries(
    samples: Sequence[Sample], fields: Sequence[str], count: int, seed: int, ask: Any
) -> list[PictureQuery]:
    """Captions of at most `count` groups, in a random order by the seed, in the fields by turns."""
    concepts: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.split == "train" and captions_in(sample, fields):
            concepts.setdefault(sample.group, []).append(place)
    drawn = uniform(seed, (0, 0, 0), (len(concepts), 2))
    members = list(concepts.values())
    queries: list[PictureQuery] = []
    for which in drawn[:, 0].argsort()[:count].tolist():
        place = members[which][int(drawn[which, 1] * len(members[which]))]
        own = [*captions_in(samples[place], fields)]
        field = own[len(queries) % len(own)]
        queries.append(ask(place, "training captions", field))
    return queries


def held_out_queries(
    samples: Sequence[Sample], fields: Sequence[str], ask: Any
) -> list[PictureQuery]:
    """All captions of the pictures of other splits, in these fields."""
    return [
        ask(place, "held-out captions", field)
        for place, sample in enumerate(samples)
        if sample.split != "train"
        for field in captions_in(sample, fields)
    ]
