"""What a folder of pictures has, for the choice of a recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from undust.datasets import films, image_folder
from undust.datasets.samples import FOLDER, caption_column
from undust.errors import UndustError
from undust.training import recipe_templates
from undust.training.sources import MAX_HELD_OUT

HELD_OUT, FEWEST_TO_HOLD_OUT = 0.1, 60
PROMPT = "a picture"  # of pictures without captions
LEAST, MULTIPLE = 32, 16  # pixels
PREVIEWS = 4  # prompts in a written recipe


@dataclass(frozen=True)
class FolderSurvey:
    """The pictures of a folder, as training sees them.

    captions: of each picture that has one; field: their column, "folder" if the names of folders
    are classes, "" without captions; side: median of the shorter sides, pixels; seconds: to find
    and read a picture; broken: number of files that cannot be read; classes: names of folders, if
    these are classes; others: number of pictures in other splits; maps: columns of pictures beside
    these.
    """

    folder: Path
    pictures: int
    field: str
    captions: Sequence[str]
    side: int
    seconds: float
    broken: int
    classes: Sequence[str] = ()
    others: int = 0
    maps: Sequence[str] = ()

    @property
    def held_out(self) -> float:
        """The share of the pictures for the validation loss; 0 with another split, or for few."""
        if self.others or self.pictures < FEWEST_TO_HOLD_OUT:
            return 0.0
        return round(min(HELD_OUT, MAX_HELD_OUT / self.pictures), 4)

    @property
    def validated(self) -> float:
        """The number of pictures of a validation loss."""
        return min(MAX_HELD_OUT, self.others or self.held_out * self.pictures)

    def prompts(self, count: int) -> list[str]:
        """Different captions, evenly spread over all, at most so many; else `PROMPT`."""
        distinct = sorted(set(self.captions)) or [PROMPT]
        return distinct[:: math.ceil(len(distinct) / count)]

    def __str__(self) -> str:
        words = f"{len(self.captions)} with captions ({self.field})"
        if self.field == FOLDER:
            words = f"of {len(set(self.captions))} classes, the names of their folders"
        elif not self.field:
            words = "without captions"
        count = f"{self.pictures} picture{'s' * (self.pictures > 1)}"
        return f"{count}, the shorter side {self.side} pixels, {words}"


def survey(
    folder: Path,
    observe: Callable[[int, int], None] = lambda _done, _all: None,
    *,
    videos: bool = False,
) -> FolderSurvey:
    """Reads every picture of a folder once. Raises UndustError if there is nothing to train on.

    observe: called with the number of pictures read and of all. videos: read as pictures too.
    """
    began = time.monotonic()
    found = films.scan(folder) if videos else image_folder.scan(folder)
    films.need_package(found)
    report = image_folder.examine(found, observe)
    samples = [sample for sample in report.samples if sample.split == "train"]
    if not samples:
        others = len(report.samples)
        held_out = f"; {others} are held out from training" if others else " that can be read"
        raise UndustError(f"{folder} has no training pictures{held_out}")
    seconds = (time.monotonic() - began) / len(report.contents.samples)
    folders = [sample.column(FOLDER) or "" for sample in samples]
    distinct = sorted(set(folders))
    classes = distinct if 1 < len(distinct) <= len(folders) / 2 else []
    if field := caption_column(report.captions):
        captions = [sample.captions[field] for sample in samples if field in sample.captions]
    else:
        field, captions = (FOLDER, folders) if classes else ("", [])
    return FolderSurvey(
        folder,
        len(samples),
        field,
        captions,
        side=int(median(min(size) for size in report.sizes.elements())),
        seconds=seconds,
        broken=len(report.broken),
        classes=classes,
        others=len(report.samples) - len(samples),
        maps=sorted(report.contents.maps),
    )


def recipe_values(found: FolderSurvey, kind: str) -> dict[str, Any]:
    """Values of the template of a recipe, by which it runs on a folder as it stands.

    Raises UndustError if the folder lacks captions or classes that the recipe is about.
    """
    usual = recipe_templates.defaults(kind)
    values: dict[str, Any] = {
        "folder": str(found.folder),
        "size": min(usual["size"], max(LEAST, found.side // MULTIPLE * MULTIPLE)),
        "held_out": found.held_out if usual["held_out"] else 0,
        "fields": [found.field] if found.field else [],
        "previews": found.prompts(PREVIEWS),
    }
    if "prompt" in usual and not found.field:
        values["prompt"] = PROMPT
    if kind == "text" and not found.field:
        raise UndustError(f"{found.folder} has no captions; undust init unconditional needs none")
    if kind == "classes" and not found.classes:
        raise UndustError(
            f"{found.folder} has no classes: several folders with several pictures each, such as "
            "cats/1.png and dogs/1.png"
        )
    if found.maps and usual.get("column") not in found.maps:
        values["column"] = found.maps[0]
    return values
