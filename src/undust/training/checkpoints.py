"""Checkpoints: written whole or not at all, verified when read, the newest kept.

out/checkpoints/step-00001000/
    weights.safetensors    every trained parameter, and the networks' buffers
    average.safetensors    their moving average
    optimizer.safetensors  the optimizer's moments
    best.safetensors       of a run with `run.patience`: averaged weights of the lowest validation
                           loss
    profiles.safetensors   of a run with `run.snapshot_every`: its power-function averages
    tokenizer/             of a diffusion model
    state.json             step, configuration ("recipe"), digests of the data and the first stage,
                           the lowest validation loss, and the SHA-256 of the other files
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.formats import safetensors_file, tokenizer_files
from undust.formats.files import atomic_folder, make_folder, remove_folder
from undust.formats.folder import read_json
from undust.regular import read_text

REQUIRED = ("weights", "average", "optimizer")
TENSOR_FILES = (*REQUIRED, "best", "profiles")
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The whole state of a run, to resume it as if it had never stopped.

    config: `model_dump` of its configuration; inputs: digests of the run's inputs, by name; none in
    checkpoints of earlier versions, which have no tokenizer either. validation: the state of a
    `ValidationHistory`; loss_scale: of a `LossScale`.
    """

    step: int
    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    tokenizer: Tokenizer | None = None
    best: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    validation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    profiles: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    loss_scale: Mapping[str, Any] = field(default_factory=dict[str, Any])


def save(folder: Path, checkpoint: TrainingCheckpoint, keep: int) -> Path:
    """Publishes a checkpoint under `folder` and removes all but the newest `keep`.

    Newer ones than this are damaged, since the run was resumed without them: they stay, uncounted.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    make_folder(folder)
    with atomic_folder(target, replace=True) as building:  # a damaged one may be there
        digests: dict[str, str] = {}
        for name in TENSOR_FILES:
            if name not in REQUIRED and not getattr(checkpoint, name):
                continue
            path = building / f"{name}.safetensors"
            safetensors_file.save(path, getattr(checkpoint, name))
            digests[name] = safetensors_file.content_hash(path)
        if checkpoint.tokenizer:
            tokenizer_files.save(building / TOKENIZER, checkpoint.tokenizer)
            written = (path for path in (building / TOKENIZER).iterdir() if path.is_file())
            for path in sorted(written):  # a workspace that could not be removed is a folder
                digests[f"{TOKENIZER}/{path.name}"] = safetensors_file.content_hash(path)
        state = {
            "step": checkpoint.step,
            "recipe": checkpoint.config,
            "inputs": dict(checkpoint.inputs),
            "validation": dict(checkpoint.validation),
            "loss_scale": dict(checkpoint.loss_scale),
            "sha256": digests,
        }
        (building / "state.json").write_text(json.dumps(state, indent=2), "utf-8")
    until_now = [path for path in _newest_first(folder) if _step(path) <= checkpoint.step]
    for old in until_now[keep:]:
        with suppress(UndustError):
            remove_folder(old)
    return target


def load(path: Path) -> TrainingCheckpoint:
    """Reads one checkpoint. Raises UndustError, naming the file, if it is cut or damaged."""
    try:
        state = json.loads(read_text(path / "state.json"))
        digests = {str(name): str(digest) for name, digest in dict(state["sha256"]).items()}
        step, config = int(state["step"]), dict(state["recipe"])
        inputs = {str(name): str(digest) for name, digest in dict(state.get("inputs", {})).items()}
        more = {name: dict(state.get(name, {})) for name in ("validation", "loss_scale")}
        others = digests.keys() - set(TENSOR_FILES)
        if step != _step(path) or not digests.keys() >= set(REQUIRED):
            raise ValueError(f"step {step}")
        if not all(re.fullmatch(rf"{TOKENIZER}/\w+\.(json|txt)", name) for name in others):
            raise ValueError(f"files {others}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UndustError(f"{path / 'state.json'} is damaged or absent") from error
    for name, digest in digests.items():
        file = path / (f"{name}.safetensors" if name in TENSOR_FILES else name)
        if not file.is_file() or safetensors_file.content_hash(file) != digest:
            raise UndustError(f"{file} is damaged or absent: its SHA-256 is not the one written")
    tensors = {
        name: safetensors_file.load(path / f"{name}.safetensors")
        for name in TENSOR_FILES
        if name in digests
    }
    tokenizer = tokenizer_files.load(path / TOKENIZER) if others else None
    return TrainingCheckpoint(
        step=step,
        config=config,
        **tensors,
        inputs=inputs,
        tokenizer=tokenizer,
        **more,
    )


def newest(folder: Path) -> tuple[TrainingCheckpoint | None, list[str]]:
    """The newest whole checkpoint, or None, and a line for each newer one that was refused."""
    refused: list[str] = []
    for path in _newest_first(folder):
        try:
            return load(path), refused
        except UndustError as error:
            refused.append(str(error))
    return None, refused


def newest_config(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and configuration of the newest checkpoint whose state can be read, or None."""
    for path in _newest_first(folder):
        try:
            return _step(path), dict(read_json(path / "state.json")["recipe"])
        except (UndustError, KeyError, TypeError, ValueError):
            continue
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
