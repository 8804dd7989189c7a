"""From a folder of pictures alone to a model: recipes, sizes and steps that suit data and machine.

Two runs in one folder: the decoder of the built-in model's first stage learns the pictures, then
its U-Net and text encoder do, on latents of that first stage. Their recipes are beside them.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from undust.conditioning.prompt import escape
from undust.datasets import image_folder
from undust.datasets.samples import FOLDER
from undust.errors import UndustError
from undust.formats.files import atomic_write, make_folder, workspace
from undust.pictures import grid
from undust.pipeline import LatentDiffusion
from undust.training import kinds, recipe_templates
from undust.training.checkpoints import newest_config
from undust.training.kinds import AnyTrainingConfig
from undust.training.loop import Trainer
from undust.training.precision import resolved

BASE = "emoji"
SIZES = (64, 96, 128, 192, 256)  # pixels, multiples of the first stage's factor
SAMPLES = 20_000  # that the diffusion model sees at least, at a size above the smallest
DECODER_SHARE = 0.3  # of the time
READING_SHARE = 0.2  # of the time, at most
SHEET_SECONDS = 30.0  # for the sheet of samples and the report
BATCH = 32
PROBED = 3  # steps
FORWARD = 1 / 3  # of a step's time: that of its loss alone
FEWEST = 20  # steps
OUTPUTS, OUTPUT_SECONDS = 8, 15.0  # previews of a run at most, and the time between two at least
HELD_OUT, MOST_HELD_OUT, FEWEST_TO_HOLD_OUT = 0.1, 256, 60
LOGGED = 200  # lines of a run's log, at least
SHOWN = 24  # pictures of the sheet
PREVIEWS = 8  # prompts
PROMPT = "a picture"  # of pictures without captions
CAPTIONS = ("text", "caption", "captions", "prompt", "description", "title")
"""Columns of captions, by precedence."""


@dataclass(frozen=True)
class FolderSurvey:
    """The pictures of a folder, as training sees them.

    captions: of each picture that has one; field: their column, "folder" if the names of folders
    are classes, "" without captions; side: median of the shorter sides, pixels; seconds: to read a
    picture; broken: number of files that cannot be read.
    """

    folder: Path
    pictures: int
    field: str
    captions: Sequence[str]
    side: int
    seconds: float
    broken: int

    def __str__(self) -> str:
        words = f"{len(self.captions)} with captions ({self.field})"
        if self.field == FOLDER:
            words = f"of {len(set(self.captions))} classes, the names of their folders"
        elif not self.field:
            words = "without captions"
        count = f"{self.pictures} picture{'s' * (self.pictures > 1)}"
        return f"{count}, the shorter side {self.side} pixels, {words}"


def survey(
    folder: Path, observe: Callable[[int, int], None] = lambda _done, _all: None
) -> FolderSurvey:
    """Reads every picture of a folder once. Raises UndustError if there is nothing to train on.

    observe: called with the number of pictures read and of all.
    """
    began = time.monotonic()
    report = image_folder.check(folder, observe)
    samples = [sample for sample in report.samples if sample.split == "train"]
    if not samples:
        others = len(report.samples)
        held_out = f"; {others} are held out from training" if others else " that can be read"
        raise UndustError(f"{folder} has no training pictures{held_out}")
    seconds = (time.monotonic() - began) / len(report.contents.samples)
    names = sorted(report.captions, key=lambda name: (-report.captions[name], name))
    names.sort(key=lambda name: CAPTIONS.index(name) if name in CAPTIONS else len(CAPTIONS))
    folders = [sample.column(FOLDER) or "" for sample in samples]
    if names:
        field = names[0]
        captions = [sample.captions[field] for sample in samples if field in sample.captions]
    else:
        classes = 1 < len(set(folders)) <= len(folders) / 2
        field, captions = (FOLDER, folders) if classes else ("", [])
    side = int(median(min(size) for size in report.sizes.elements()))
    broken = len(report.broken)
    return FolderSurvey(folder, len(samples), field, captions, side, seconds, broken)


@dataclass(frozen=True)
class Stage:
    """One of the runs: its recipe, the recipe's file, and its folder."""

    config: AnyTrainingConfig
    recipe: Path
    out: Path

    @property
    def finished(self) -> bool:
        """Whether all of its steps are done."""
        newest = newest_config(self.out / "checkpoints")
        return newest is not None and newest[0] >= self.config.run.steps


class Starter:
    """The runs of a folder of pictures, planned one after the other, and the sheet at their end."""

    def __init__(
        self,
        found: FolderSurvey,
        out: Path,
        seconds: float,
        *,
        resume: bool = False,
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        """seconds: for everything, from now on; resume: recipes that `out` has are used again.

        note: called with lines on the choices. Raises UndustError for earlier runs in `out` without
        `resume`.
        """
        self.found, self.out, self.resume, self._note = found, out, resume, note
        self._paces: dict[tuple[str, int], float] = {}
        self._began, self._seconds = time.monotonic(), seconds - SHEET_SECONDS
        limit = max(BATCH, int(READING_SHARE * seconds / (2 * found.seconds)))
        self.limit = 0 if limit >= found.pictures else limit
        self.pictures = self.limit or found.pictures
        self.held_out = 0.0
        if self.pictures >= FEWEST_TO_HOLD_OUT:
            self.held_out = round(min(HELD_OUT, MOST_HELD_OUT / self.pictures), 4)
        if not resume and any(self._recipe(name).exists() for name in ("first-stage", "diffusion")):
            raise UndustError(
                f"{out} has an earlier run: --resume continues it, another --out starts anew"
            )

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.out / "diffusion" / "model"

    def stages(self) -> Iterator[Stage]:
        """The first stage's run, then the diffusion model's. Raises UndustError as `prepare`."""
        shared = {
            "folder": str(self.found.folder.resolve()),
            "limit": self.limit,
            "held_out": self.held_out,
            "on_error": "skip" if self.found.broken else "refuse",
            "batch": BATCH,
        }
        first = {**shared, "first_stage": BASE}
        second = {
            **shared,
            "model": BASE,
            "first_stage": str((self.out / "first-stage").resolve()),
            "prompt": "" if self.found.field else PROMPT,
            "fields": [self.found.field],
            "previews": self._prompts()[:PREVIEWS],
        }
        size = 0
        for name, template, share, values in (
            ("first-stage", "decoder", DECODER_SHARE, first),
            ("diffusion", "finetune", 1.0, second),
        ):
            if not (self.resume and self._recipe(name).exists()):
                size = size or self._size({**second, "first_stage": BASE})
                text = self._planned(template, {**values, "size": size}, share)
                make_folder(self.out)
                atomic_write(self._recipe(name), text.encode())
            config = kinds.read(self._recipe(name))
            size = config.data.size
            yield Stage(config, self._recipe(name), self.out / name)

    def sheet(self, observe: Callable[[int, int], object] = lambda _done, _all: None) -> Path:
        """Generates pictures of the data's captions with the finished model, as one picture.

        observe: called with the number of pictures done and of all.
        """
        model = LatentDiffusion.load(self.model)
        prompts = self._prompts()
        count = max(1, SHOWN // len(prompts))
        images: list[Image.Image] = []
        for prompt in prompts:
            images += [each.image for each in model.generate(escape(prompt), seed=1, count=count)]
            observe(len(images), len(prompts) * count)
        path = self.out / "samples.png"
        grid(images).save(path)
        return path

    def _prompts(self) -> list[str]:
        """Captions of the data, at most as many as the sheet has pictures."""
        distinct = sorted(set(self.found.captions)) or [PROMPT]
        return distinct[:: math.ceil(len(distinct) / SHOWN)]

    def _recipe(self, name: str) -> Path:
        return self.out / f"{name}.toml"

    def _planned(self, template: str, values: Mapping[str, Any], share: float) -> str:
        """The recipe of a run that ends when that share of the time is over."""
        pace = self._pace(template, values)
        left = share * self._seconds - (time.monotonic() - self._began)
        preparing = self.found.seconds
        if template == "finetune":
            preparing += self._encoding(int(values["size"]))
        validations = OUTPUTS * self.held_out * self.pictures / BATCH * FORWARD  # in steps
        steps = max(FEWEST, int((left - self.pictures * preparing) / pace - validations))
        every = max(1, steps // OUTPUTS, math.ceil(OUTPUT_SECONDS / pace))
        intervals = {"sample_every": every, "log_every": max(1, steps // LOGGED)}
        return recipe_templates.recipe(template, **values, **intervals, steps=steps)

    def _size(self, values: Mapping[str, Any]) -> int:
        """The largest size of pictures for which the time is enough.

        values: of the diffusion model's recipe.
        """
        pace = self._pace("finetune", {**values, "size": SIZES[0]})
        samples = (1 - DECODER_SHARE) * self._seconds / pace * BATCH
        fits = [
            size
            for size in SIZES[1:]
            if size <= self.found.side and samples * (SIZES[0] / size) ** 2 >= SAMPLES
        ]
        size = max(fits, default=SIZES[0])
        seen = samples * (SIZES[0] / size) ** 2
        self._note(f"pictures of {size} pixels, of which about {seen:,.0f} are seen in the time")
        return size

    def _encoding(self, size: int) -> float:
        """The seconds to encode a picture of this size, by a batch; one before it is slower."""
        first_stage = LatentDiffusion.load(BASE).first_stage
        began = time.monotonic()
        with torch.no_grad():
            for _ in range(2):
                began = time.monotonic()
                first_stage.encode(torch.zeros(BATCH, 3, size, size))
        return (time.monotonic() - began) / BATCH

    def _pace(self, template: str, values: Mapping[str, Any]) -> float:
        """The seconds of a step, by a few steps on a few pictures, which are thrown away."""
        key = template, int(values["size"])
        if key in self._paces:
            return self._paces[key]
        text = recipe_templates.recipe(template, **{**values, "limit": BATCH}, steps=10**6)
        config, _ = resolved(kinds.parse(tomllib.loads(text), template).complete())
        make_folder(self.out)
        with workspace(self.out / "probe", self.out) as scratch:
            task = config.task(scratch, None, lambda _done, _all: None)
            trainer = Trainer(task, config, scratch)
            trainer.advance()  # the first is slower
            began = time.monotonic()
            for _ in range(PROBED):
                trainer.advance()
            self._paces[key] = (time.monotonic() - began) / PROBED
        return self._paces[key]
