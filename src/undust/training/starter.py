"""From a folder of pictures alone to a model: recipes, sizes and steps that suit data and machine.

Two runs in one folder: the decoder of the built-in model's first stage learns the pictures, then
its U-Net and text encoder do, on latents of that first stage. Their recipes are beside them.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from undust.conditioning.prompt import escape
from undust.errors import UndustError
from undust.formats.files import atomic_write, make_folder, workspace
from undust.formats.run_folder import STARTED
from undust.pictures import grid
from undust.pipeline import LatentDiffusion
from undust.training import kinds, recipe_templates
from undust.training.denoising import PREVIEW_STEPS
from undust.training.kinds import AnyTrainingConfig
from undust.training.loop import Trainer
from undust.training.precision import resolved
from undust.training.survey import PROMPT, FolderSurvey

BASE = "emoji"
STAGES = dict(zip(STARTED, ("decoder", "finetune"), strict=True))
"""Names of the runs -> templates of their recipes."""
SIZES = (64, 96, 128, 192, 256)  # pixels, multiples of the first stage's factor
SAMPLES = 20_000  # that the diffusion model sees at least, at a size above the smallest
DECODER_SHARE = 0.3  # of the time
PREPARING_SHARE = 0.2  # of the time, at most, for reading and encoding the pictures that are used
CLOSING_SECONDS = 10.0  # for loading the finished model and writing the report
BATCH = 32
PROBED = 3  # steps
FORWARD = 1 / 3  # of a step's time: that of its loss alone
FEWEST = 5  # steps
OUTPUTS = 8  # validations and previews of a run, at most
OUTPUT_SHARE = 0.15  # of the time of a run for these, at most
OUTPUT_SECONDS = 15.0  # between two, at least
LOGGED = 200  # lines of a run's log, at least
SHOWN = 24  # pictures of the sheet
PREVIEWS = 8  # prompts


@dataclass(frozen=True)
class Stage:
    """One of the runs: its recipe, the recipe's file, and its folder."""

    config: AnyTrainingConfig
    recipe: Path
    out: Path


def check_new(out: Path) -> None:
    """Raises UndustError for the folder of a run, or of an earlier start."""
    if any((out / "checkpoints").glob("step-*")):
        raise UndustError(f"{out} is the folder of a run; choose another --out")
    if any((out / f"{name}.toml").exists() for name in STAGES):
        raise UndustError(
            f"{out} has an earlier run: --resume continues it, another --out starts anew"
        )


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
        """seconds: for everything, the survey included; resume: use again the recipes in `out`.

        note: called with lines on the choices.
        """
        self.found, self.out, self.resume, self._note = found, out, resume, note
        self._paces: dict[tuple[str, int], float] = {}
        self._encoding: dict[int, float] = {}
        reading = found.seconds * (found.pictures + found.broken)
        self._end, self._seconds = time.monotonic() + seconds - reading, seconds

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.out / "diffusion" / "model"

    def stages(self) -> Iterator[Stage]:
        """The first stage's run, then the diffusion model's. Raises UndustError as `prepare`."""
        size = 0
        for name, template in STAGES.items():
            if not (self.resume and self._recipe(name).exists()):
                size = size or self._size()
                text = self._planned(template, size)
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
        prompts = self.found.prompts(SHOWN)
        count = max(1, SHOWN // len(prompts))
        images: list[Image.Image] = []
        for prompt in prompts:
            images += [each.image for each in model.generate(escape(prompt), seed=1, count=count)]
            observe(len(images), len(prompts) * count)
        path = self.out / "samples.png"
        grid(images).save(path)
        return path

    def _recipe(self, name: str) -> Path:
        return self.out / f"{name}.toml"

    def _values(self, template: str, size: int) -> dict[str, Any]:
        """The values of a recipe, but for the steps and intervals of its run."""
        values: dict[str, Any] = {
            "folder": str(self.found.folder.resolve()),
            "size": size,
            "on_error": "skip" if self.found.broken else "refuse",
            "held_out": self.found.held_out,
            "batch": BATCH,
            "first_stage": BASE,
        }
        if template == "finetune":
            trained = self.out / "first-stage"
            values |= {
                "model": BASE,
                "first_stage": str(trained.resolve()) if trained.exists() else BASE,
                "prompt": "" if self.found.field else PROMPT,
                "fields": [self.found.field],
                "previews": self.found.prompts(PREVIEWS),
            }
        return values

    def _planned(self, template: str, size: int) -> str:
        """The recipe of a run that ends when its share of the time is over."""
        used = self._used(size)
        pace, generating = self._pace(template, size), self._generating(size)
        left = self._end - time.monotonic() - CLOSING_SECONDS - SHOWN * generating
        left -= self._preparing("finetune", size)
        output = pace * FORWARD * self.found.validated / BATCH
        if template == "decoder":
            left = DECODER_SHARE * (left - self._preparing("decoder", size))
        else:
            output += generating * len(self.found.prompts(PREVIEWS))
        outputs = int(min(OUTPUTS, left / OUTPUT_SECONDS, OUTPUT_SHARE * left / max(output, 1e-3)))
        outputs = max(1, outputs)
        steps = int((left - outputs * output) / pace)
        if steps < FEWEST:
            self._note(f"the time is too short here: {FEWEST} steps are trained, the fewest")
            steps = FEWEST
        every = max(1, math.ceil(steps / outputs))
        return recipe_templates.recipe(
            template,
            **self._values(template, size),
            limit=0 if used == self.found.pictures else used,
            sample_every=every,
            log_every=max(1, steps // LOGGED),
            steps=steps,
        )

    def _size(self) -> int:
        """The largest size of pictures for which the time is enough."""
        pace = self._pace("finetune", SIZES[0])
        left = self._end - time.monotonic()
        samples = (1 - DECODER_SHARE) * left / pace * BATCH
        fits = [
            size
            for size in SIZES[1:]
            if size <= self.found.side and samples * (SIZES[0] / size) ** 2 >= SAMPLES
        ]
        size = max(fits, default=SIZES[0])
        seen = max(0.0, samples) * (SIZES[0] / size) ** 2
        self._note(f"pictures of {size} pixels, of which about {seen:,.0f} are seen in the time")
        return size

    def _used(self, size: int) -> int:
        """The number of pictures that are read and encoded in their share of the time."""
        each = 2 * self.found.seconds + self._encoding_seconds(size)
        return min(self.found.pictures, max(BATCH, int(PREPARING_SHARE * self._seconds / each)))

    def _preparing(self, template: str, size: int) -> float:
        """The seconds before the first step of a run: all pictures are checked, some encoded."""
        each = self.found.seconds
        if template == "finetune":
            each += self._encoding_seconds(size)
        return self.found.pictures * self.found.seconds + self._used(size) * each

    def _encoding_seconds(self, size: int) -> float:
        """The seconds to encode a picture of this size, by a batch; one before it is slower."""
        if size not in self._encoding:
            first_stage = LatentDiffusion.load(BASE).first_stage
            began = time.monotonic()
            with torch.no_grad():
                for _ in range(2):
                    began = time.monotonic()
                    first_stage.encode(torch.zeros(BATCH, 3, size, size))
            self._encoding[size] = (time.monotonic() - began) / BATCH
        return self._encoding[size]

    def _generating(self, size: int) -> float:
        """The seconds to generate a picture: two estimates a step, with and without its prompt."""
        return 2 * PREVIEW_STEPS * FORWARD * self._pace("finetune", size) / BATCH

    def _pace(self, template: str, size: int) -> float:
        """The seconds of a step, by a few steps on a few pictures, which are thrown away."""
        key = template, size
        if key in self._paces:
            return self._paces[key]
        values = {**self._values(template, size), "limit": BATCH, "held_out": 0}
        text = recipe_templates.recipe(template, **values, steps=10**6)
        config, _ = resolved(kinds.parse(tomllib.loads(text), template).complete())
        make_folder(self.out)
        with workspace(self.out / "probe", self.out) as scratch:
            task = config.task(scratch, None, lambda _done, _all: None)
            trainer = Trainer(task, config, scratch)
            trainer.advance()  # the first is slower
            if not self._paces:
                self._choose_threads(trainer)
            self._paces[key] = _seconds_a_step(trainer)
        return self._paces[key]

    def _choose_threads(self, trainer: Trainer) -> None:
        """One thread instead of several where they are slower: beside other programs they wait."""
        several = torch.get_num_threads()
        if several == 1 or trainer.device.type != "cpu":
            return
        before = _seconds_a_step(trainer)
        torch.set_num_threads(1)
        after = _seconds_a_step(trainer)
        if after < before:
            self._note(
                f"one thread: {BATCH / after:.1f} samples/s, against {BATCH / before:.1f} with "
                f"{several} threads"
            )
        else:
            torch.set_num_threads(several)


def _seconds_a_step(trainer: Trainer) -> float:
    began = time.monotonic()
    for _ in range(PROBED):
        trainer.advance()
    return (time.monotonic() - began) / PROBED
