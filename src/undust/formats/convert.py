"""A model from a folder, a single file or a pickle, and into a folder or a single file.

So too a first stage alone, a ControlNet, a LoRA or a learnt word. Between `opened` and `write` it
lies in memory: mapped, as long as nothing changes a weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import torch

from undust.errors import UndustError
from undust.formats import (
    controlnet,
    extras,
    model_folder,
    pickles,
    safetensors_file,
    single_file,
)
from undust.formats.components import Components, load_first_stage, save_component, types_of
from undust.formats.extras import CONTROLNET, ExtraFile
from undust.formats.files import atomic, atomic_folder
from undust.formats.folder import INDEX, STEMS, read_json, read_model_index
from undust.formats.original import model as original_model
from undust.formats.original.checkpoint import scan_checkpoint
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.controlnet import ControlNet
from undust.regular import read_bytes

LAYOUTS = ("folder", "single-file")
CONFIG = "config.json"
SUFFIX = ".safetensors"
MODEL, FIRST_STAGE = "a model", "a first stage"
# The networks that are a folder of their own.
ALONE = {FirstStageNetwork: FIRST_STAGE, ControlNet: CONTROLNET}
# What pickled weights of a component are called, and what they become.
PICKLED = {
    f"{name}{variant}.bin": f"{stem}{SUFFIX}"
    for variant in ("", ".fp16")
    for name, stem in zip(("diffusion_pytorch_model", "pytorch_model"), STEMS, strict=True)
}
Model = single_file.Model | ExtraFile
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, or what belongs into one; notes: what was there and is not in it."""

    model: Model
    notes: list[str] = field(default_factory=list[str])

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return _kind(self.model)


def check(source: Path, target: Path, layout: str) -> str:
    """Of what kind that is which `target`, a copy of `source`, would replace; "" if nothing.

    Raises UndustError if it cannot be written in one of `LAYOUTS`, such as when it is there already
    and is nothing that `write` writes, or if the two lie in each other: what is replaced would be
    lost with what is only in it.
    """
    if layout not in LAYOUTS:
        raise UndustError(f"{layout!r:.40} is no layout; possible are {' and '.join(LAYOUTS)}")
    old, new = source.resolve(), target.resolve()
    if old == new or old in new.parents or new in old.parents:
        raise UndustError(f"{target} and {source} are the same or lie in each other")
    place = next(place for place in new.parents if place.exists())
    if not place.is_dir():
        raise UndustError(f"cannot write {target}: {place} is not a folder")
    if layout != "folder" and new.suffix != SUFFIX:
        raise UndustError(f"{target}: the name of a single file ends in {SUFFIX}")
    return _there(target, layout)


@contextmanager
def opened(path: Path, scratch: Path, *, ema: bool = False) -> Generator[LoadedModel]:
    """The model at a path, each of its weights in the precision that it is stored in.

    A diffusers folder of a model, a first stage or a ControlNet, one file of these, of a LoRA or of
    a learnt word, or any of them pickled; `scratch` is a folder, perhaps yet to be made, on a disk
    with room for what is unpacked. ema: as `scan_checkpoint`. Raises UndustError for anything else.
    """
    there = next(folder for folder in (scratch, *scratch.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".undust-", dir=there) as name:
        if path.is_dir():
            if ema:
                raise UndustError(f"{path} is a folder, which holds no moving averages")
            yield _from_folder(path, Path(name))
        else:
            yield _from_file(path, Path(name), ema=ema)


def write(
    model: Model,
    path: Path,
    layout: str,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> list[str]:
    """Writes the model in one of `LAYOUTS`, whole or not at all; what it cannot tell its reader.

    dtype, wrote: as `safetensors_file.save`. Folders above it are made. What is there is replaced
    if it is of the same kind: `check` comes first. Raises UndustError for a model that the layout
    cannot hold without becoming another one.
    """
    there, kind = _there(path, layout), _kind(model)
    if there not in ("", kind):
        raise UndustError(f"{path} is there already and is {there}, not {kind}; it stays")
    if isinstance(model, ExtraFile):
        if layout == "folder":
            raise UndustError(f"{kind} is one file and never a folder: {LAYOUTS[1]} is its layout")
        _make(path.parent)
        safetensors_file.save(path, model.tensors, model.metadata, dtype=dtype, wrote=wrote)
        return []
    if layout == "folder":
        _make(path.parent)
        _write_folder(model, path, dtype, wrote)
        return []
    tensors, unsaid = single_file.tensors(model)
    _make(path.parent)
    with atomic(path) as temporary:
        safetensors_file.save(temporary, tensors, {"format": "pt"}, dtype=dtype, wrote=wrote)
        single_file.check(temporary, model, path)
    return unsaid


def size(model: Model, dtype: torch.dtype | None = None) -> int:
    """How many bytes its weights come to."""
    match model:
        case ExtraFile():
            held = [model.tensors]
        case Components():
            held = [network.state_dict() for network in model.networks.values()]
        case _:
            held = [model.state_dict()]
    return sum(
        tensor.numel() * (dtype or tensor.dtype).itemsize
        for tensors in held
        for tensor in tensors.values()
    )


def _from_folder(folder: Path, scratch: Path) -> LoadedModel:
    kind = _kind_of_folder(folder)
    if kind not in ("", MODEL):
        load = controlnet.load if kind == CONTROLNET else load_first_stage
        safe = _safe(folder.absolute(), scratch)
        return LoadedModel(_blamed(folder, safe, lambda: load(safe, None)))
    index = read_model_index(folder)
    parts = {name: folder / name for name in index if (folder / name).is_dir()}
    safe = {
        name: _safe(part, scratch / "parts") if name in model_folder.NETWORKS else part
        for name, part in parts.items()
    }
    source = folder
    if safe != parts:
        source = scratch / "model"
        source.mkdir()
        (source / INDEX).write_bytes(read_bytes(folder / INDEX))
        for name, part in safe.items():
            (source / name).symlink_to(part.resolve())
    model = _blamed(folder, source, lambda: model_folder.read(source, None))
    left_out = [name for name in model_folder.IGNORED if name in index]
    return LoadedModel(model, [f"left out: {name}" for name in left_out])


def _from_file(path: Path, scratch: Path, *, ema: bool) -> LoadedModel:
    source, notes = path, list[str]()
    if pickles.is_pickle(path):
        source = scratch / f"weights{SUFFIX}"
        pickles.unpack(path, source)
        if (config := path.with_name(CONFIG)).exists():  # as a ControlNet may have
            (scratch / CONFIG).write_bytes(read_bytes(config))
        if left := safetensors_file.header(source).metadata.get(pickles.LEFT_OUT):
            notes.append(f"left out: {left}")
    found = _blamed(path, source, lambda: _from_safetensors(source, path, ema=ema))
    return LoadedModel(found.model, [*notes, *found.notes])


def _from_safetensors(path: Path, given: Path, *, ema: bool) -> LoadedModel:
    """What is in a file; given: what it is a safe copy of, or itself."""
    kind = extras.kind_of(path)
    found = None if kind else scan_checkpoint(path, ema=ema)
    if ema and (found is None or found.variant is None):
        raise UndustError(f"{path} is {kind or FIRST_STAGE}, which has no moving averages")
    if kind == CONTROLNET:
        beside = path.with_name(CONFIG)
        network = _blamed(given.with_name(CONFIG), beside, lambda: controlnet.load(path, None))
        spare = len(safetensors_file.header(path).tensors) - len(network.state_dict())
        notes = [f"left out: the model beside it ({spare} tensors)"] if spare else []
        return LoadedModel(network, notes)
    if found is None:
        return LoadedModel(extras.read(path, kind, given))
    notes = [f"left out: {what} ({number} tensors)" for what, number in found.spare.items()]
    if found.variant is not None:
        return LoadedModel(original_model.load(path, None, ema=ema), notes)
    first_stage = cast(Autoencoder, found.load(None)["vae"])
    scale = first_stage.config.scaling_factor
    notes.append(
        f"a first stage alone does not tell its latents' scale: {scale:g} is taken, Stable "
        "Diffusion 1 and 2's"
    )
    return LoadedModel(first_stage, notes)


def _blamed(path: Path, copy: Path, read: Callable[[], T]) -> T:
    """What `read` gives; its errors name the path that was given, not its safe copy."""
    try:
        return read()
    except UndustError as error:
        raise UndustError(str(error).replace(str(copy), str(path))) from error


def _safe(component: Path, scratch: Path) -> Path:
    """The component's folder, or a copy of one that has its weights as a pickle only."""
    found = [name for name in PICKLED if (component / name).exists()]
    if not found or any(component.glob(f"*{SUFFIX}")):
        return component
    copy = scratch / component.name
    copy.mkdir(parents=True)
    (copy / CONFIG).write_bytes(read_bytes(component / CONFIG))
    pickles.unpack(component / found[0], copy / PICKLED[found[0]])
    return copy


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UndustError(f"cannot make the folder {folder}: {error.strerror}") from error


def _write_folder(
    model: single_file.Model,
    path: Path,
    dtype: torch.dtype | None,
    wrote: Callable[[int], object],
) -> None:
    if isinstance(model, Components):
        model_folder.write(model, path, dtype, wrote)
        return
    with atomic_folder(path, replace=True) as building:
        save_component(building, model, dtype, wrote)


def _kind(model: Model) -> str:
    match model:
        case ExtraFile():
            return model.kind
        case ControlNet():
            return CONTROLNET
        case FirstStageNetwork():
            return FIRST_STAGE
        case Components():
            return MODEL


def _there(path: Path, layout: str) -> str:
    """Of what kind that is which lies at a path; "" if nothing. UndustError if of none."""
    if not path.exists() or (layout == "folder" and path.is_dir() and not any(path.iterdir())):
        return ""
    kind = _kind_of_folder(path) if layout == "folder" else _kind_of_file(path)
    if not kind:
        raise UndustError(f"{path} is there already and is not a model; it is left as it is")
    return kind


def _kind_of_folder(folder: Path) -> str:
    """Of what kind a folder is; "" for another one, and for a file."""
    if (folder / INDEX).is_file():
        return MODEL
    config = folder / CONFIG
    found = read_json(config).get("_class_name") if config.exists() else None
    return next((kind for base, kind in ALONE.items() if found in types_of(base)), "")


def _kind_of_file(path: Path) -> str:
    """Of what kind a file is; "" for another one, and for a folder."""
    try:
        return extras.kind_of(path) or (MODEL if scan_checkpoint(path).variant else FIRST_STAGE)
    except UndustError:
        return ""
