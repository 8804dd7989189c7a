"""The folders that `undust` writes pictures into: training runs, and generated pictures."""

from __future__ import annotations

from pathlib import Path

GENERATED = "undust-out"  # the default folder of generated pictures
RECORD = "run.json"  # the record of a training run
LOCK = "run.lock"  # exists while a run trains in the folder
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
STARTED = ("first-stage", "diffusion")
"""The runs of a folder of pictures, and before .toml their recipes, in the folder of both."""


def is_output(folder: Path) -> bool:
    """Whether a folder is that of a training run, of both runs of a start, or of generated ones.

    Pictures in it are samples of models, and no data.
    """
    first = STARTED[0]
    started = (folder / f"{first}.toml").is_file() and _is_run(folder / first)
    return folder.name == GENERATED or started or _is_run(folder)


def _is_run(folder: Path) -> bool:
    logged = (folder / LOG).is_file()
    recorded = (folder / RECORD).is_file() or (folder / CHECKPOINTS).is_dir()
    return (logged and recorded) or (folder / LOCK).is_file()
