"""Encoding a data set once for many runs: the library's side of `undust data encode`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from undust.datasets import encoded
from undust.errors import UndustError
from undust.formats.files import make_folder
from undust.formats.locks import FileLock, LockedError
from undust.formats.run_folder import LOCK
from undust.training.caches import LatentCache, all_views
from undust.training.conditions import LabelCondition
from undust.training.data import Observe
from undust.training.denoising import DenoisingConfig, DenoisingTask
from undust.training.task import TrainingConfig

NO_LATENTS = (
    "the recipe has no latents to encode for several runs: that of a diffusion model of pictures "
    "with a first stage has"
)
IN_EACH_STEP = (
    "made from the pictures in each step, which encoded data lack: train this recipe from the "
    "pictures"
)
SPATIAL = ("maps", "inpainting", "low_resolution", "condition")
"""Tables of a recipe whose inputs need the pictures."""


@dataclass(frozen=True)
class Encoded:
    """The number of pictures, of their views, and of captions that were encoded; notes."""

    pictures: int
    views: int
    captions: int
    notes: list[str]


def encode(
    config: TrainingConfig, out: Path, observe: Observe, observe_captions: Observe
) -> Encoded:
    """Writes the latents of a recipe's pictures, and by a finished text encoder its captions.

    What is in `out` already and of the same inputs stays, so that an interrupted one continues.
    Raises UndustError for a recipe whose steps need more than latents and captions, for a folder
    that is in use or of a run, and as `TrainingConfig.task`.
    """
    _check(config)
    if encoded.is_encoded(config.data.folder):
        raise UndustError(f"{config.data.folder} is encoded data already")
    if out.exists() and config.data.folder.exists() and out.samefile(config.data.folder):
        raise UndustError(
            f"{out} has the pictures, which would no longer be read beside latents; choose another "
            "--out"
        )
    if any((out / "checkpoints").glob("step-*")):
        raise UndustError(f"{out} is the folder of a run; choose another --out")
    make_folder(out)
    try:
        lock = FileLock(out / LOCK)
    except LockedError as error:
        raise UndustError(f"{out} is in use: {error} writes in it; choose another --out") from None
    except OSError as error:
        raise UndustError(f"cannot write to {out}: {error.strerror}") from error
    try:
        (out / encoded.INDEX).unlink(missing_ok=True)  # of other inputs, perhaps
        task = config.complete().task(out, None, observe)
        if not isinstance(task, DenoisingTask) or not isinstance(task.latents, LatentCache):
            raise UndustError(NO_LATENTS)
        if any(not isinstance(each, LabelCondition) for each in task.conditions):
            raise UndustError(f"model: it takes a mask or a small picture, {IN_EACH_STEP}")
        captions = task.text.store(out, observe_captions) if task.text else 0
        notes = [*dict.fromkeys([*task.notes, *(task.text.notes if task.text else ())])]
        encoded.write_index(out, task.data.samples)
        views = len(all_views(task.data))
        return Encoded(len({*task.data.train, *task.data.held_out}), views, captions, notes)
    finally:
        lock.release()


def _check(config: TrainingConfig) -> None:
    """Raises UndustError for a recipe whose steps or figures need the pictures."""
    if not isinstance(config, DenoisingConfig):
        raise UndustError(NO_LATENTS)
    for table in SPATIAL:
        if getattr(config, table, None):
            raise UndustError(f"{table}: {IN_EACH_STEP}")
    if config.figures.every:
        raise UndustError(
            "figures.every: figures compare with the pictures, which encoded data lack: "
            "--set figures.every=0 leaves them out"
        )
