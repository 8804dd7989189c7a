"""Checkpoints: published whole or not at all, checked before they are used, the newest kept.

out/checkpoints/step-00001000/
    weights.safetensors    every trained parameter
    average.safetensors    their moving average
    optimizer.safetensors  the optimizer's moments
    state.json             step, recipe, and the SHA-256 of the three files
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.files import atomic_folder
from undust.regular import read_text

TENSOR_FILES = ("weights", "average", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    step: int
    recipe: dict[str, Any]
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Publishes a checkpoint under `folder` and removes all but the newest `keep`.

    Newer ones than this, which the run went on without since they are damaged, stay and count not.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target, replace=True) as building:  # a damaged one may be there
        digests: dict[str, str] = {}
        for name in TENSOR_FILES:
            path = building / f"{name}.safetensors"
            safetensors_file.save(path, getattr(checkpoint, name))
            digests[name] = safetensors_file.content_hash(path)
        state = {"step": checkpoint.step, "recipe": checkpoint.recipe, "sha256": digests}
        (building / "state.json").write_text(json.dumps(state, indent=2), "utf-8")
    until_now = [path for path in _newest_first(folder) if _step(path) <= checkpoint.step]
    for old in until_now[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load(path: Path) -> Checkpoint:
    """One checkpoint. Raises UndustError, naming the file, for one that is cut or damaged."""
    try:
        state = json.loads(read_text(path / "state.json"))
        digests = {name: str(state["sha256"][name]) for name in TENSOR_FILES}
        step, recipe = int(state["step"]), dict(state["recipe"])
        if step != _step(path):
            raise ValueError(f"step {step}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UndustError(f"{path / 'state.json'} is damaged or absent") from error
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for name, digest in digests.items():
        file = path / f"{name}.safetensors"
        if not file.is_file() or safetensors_file.content_hash(file) != digest:
            raise UndustError(f"{file} is damaged or absent: its SHA-256 is not the one written")
        tensors[name] = safetensors_file.load(file)
    return Checkpoint(step=step, recipe=recipe, **tensors)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, or None, and a line for each newer one that was refused."""
    refused: list[str] = []
    for path in _newest_first(folder):
        try:
            return load(path), refused
        except UndustError as error:
            refused.append(str(error))
    return None, refused


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
