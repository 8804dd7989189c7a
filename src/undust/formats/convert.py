"""Conversion of models between a diffusers folder and a single file, also from pickles.

A first stage alone, a ControlNet, a LoRA and a textual inversion are converted too. Between
`open_model` and `write_model` the weights are memory-mapped, unless something changes them.
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
from undust.formats.files import atomic, atomic_folder, make_folder
from undust.formats.folder import INDEX, STEMS, read_json, read_model_index
from undust.formats.original.checkpoint import scan_checkpoint
from undust.formats.original.model import load_single_file
from undust.formats.original.video import is_video_file, read_video_file, scan_video_file
from undust.formats.video_folder import (
    VideoComponents,
    is_video_folder,
    read_video_folder,
    write_video_folder,
)
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.controlnet import ControlNet
from undust.regular import read_bytes

LAYOUTS = ("folder", "single-file")
CONFIG = "config.json"
SUFFIX = ".safetensors"
MODEL, FIRST_STAGE, FILMS = "a model", "a first stage", "a model of films"
# Networks with a folder of their own.
ALONE = {FirstStageNetwork: FIRST_STAGE, ControlNet: CONTROLNET}
# File names of a component's pickled weights → those of the converted ones.
PICKLED = {
    f"{name}{variant}.bin": f"{stem}{SUFFIX}"
    for variant in ("", ".fp16")
    for name, stem in zip(("diffusion_pytorch_model", "pytorch_model"), STEMS, strict=True)
}
Model = single_file.Model | ExtraFile | VideoComponents
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, or an extra file for one; notes: the parts of its source left out."""

    model: Model
    notes: list[str] = field(default_factory=list[str])

    @property
    def kind(self) -> str:
        """What it is, such as "a model" or "a LoRA"."""
        return _kind(self.model)


def check_target(source: Path, target: Path, layout: str) -> str:
    """The kind of model already at `target` that would be overwritten; "" if none.

    Raises UndustError for an unknown layout, for a target that cannot be written or exists and is
    not a model, and if one of the two paths contains the other.
    """
    if layout not in LAYOUTS:
        raise UndustError(f"{layout!r:.40} is not a layout; expected {' or '.join(LAYOUTS)}")
    old, new = source.resolve(), target.resolve()
    if old == new or old in new.parents or new in old.parents:
        raise UndustError(f"{target} and {source} are the same, or one contains the other")
    place = next(place for place in new.parents if place.exists())
    if not place.is_dir():
        raise UndustError(f"cannot write {target}: {place} is not a folder")
    if layout != "folder" and new.suffix != SUFFIX:
        raise UndustError(f"{target}: the name of a single file has to end in {SUFFIX}")
    return _existing_kind(target, layout)


@contextmanager
def open_model(path: Path, scratch: Path, *, ema: bool = False) -> Generator[LoadedModel]:
    """The model at a path, each weight in the dtype that it is stored in.

    path: a diffusers folder of a model, a first stage or a ControlNet; a single file of these, of a
    LoRA or of a textual inversion; or any of them pickled. scratch: a folder, which need not exist
    yet, on a disk with room for unpacked pickles; ema: as `scan_checkpoint`. Raises UndustError for
    anything else.
    """
    there = next(folder for folder in (scratch, *scratch.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".undust-", dir=there) as name:
        if path.is_dir():
            if ema:
                raise UndustError(f"{path} is a folder, which has no moving averages of weights")
            yield _from_folder(path, Path(name))
        else:
            yield _from_file(path, Path(name), ema=ema)


def write_model(
    model: Model,
    path: Path,
    layout: str,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> list[str]:
    """Writes a model in one of `LAYOUTS`, atomically; returns notes on what the file cannot store.

    dtype, wrote: as `safetensors_file.save`. Missing parent folders are made. An existing model of
    the same kind is replaced; call `check_target` first. Raises UndustError for a model that the
    layout cannot store completely.
    """
    existing, kind = _existing_kind(path, layout), _kind(model)
    if existing not in ("", kind):
        raise UndustError(f"{path} exists and is {existing}, not {kind}; it is not replaced")
    if isinstance(model, ExtraFile):
        if layout == "folder":
            raise UndustError(f"{kind} is always a single file: its layout is {LAYOUTS[1]}")
        make_folder(path.parent)
        safetensors_file.save(path, model.tensors, model.metadata, dtype=dtype, wrote=wrote)
        return []
    if layout == "folder":
        make_folder(path.parent)
        if isinstance(model, VideoComponents):
            write_video_folder(model, path, dtype, wrote)
            return []
        if isinstance(model, Components):
            model_folder.write(model, path, dtype, wrote)
            return []
        with atomic_folder(path, replace=True) as building:
            save_component(building, model, dtype, wrote)
        return []
    if isinstance(model, VideoComponents):
        raise UndustError(f"{kind} is written as a folder alone: its layout is {LAYOUTS[0]}")
    tensors, notes = single_file.tensors(model)
    make_folder(path.parent)
    with atomic(path) as temporary:
        safetensors_file.save(temporary, tensors, {"format": "pt"}, dtype=dtype, wrote=wrote)
        single_file.check_read_back(temporary, model, path)
    return notes


def size_in_bytes(model: Model, dtype: torch.dtype | None = None) -> int:
    """The size of its weights, in bytes."""
    match model:
        case ExtraFile():
            groups = [model.tensors]
        case Components() | VideoComponents():
            groups = [network.state_dict() for network in model.networks.values()]
        case _:
            groups = [model.state_dict()]
    return sum(
        tensor.numel() * (dtype or tensor.dtype).itemsize
        for tensors in groups
        for tensor in tensors.values()
    )


def _from_folder(folder: Path, scratch: Path) -> LoadedModel:
    kind = _kind_of_folder(folder)
    if kind in (CONTROLNET, FIRST_STAGE):
        load = controlnet.load if kind == CONTROLNET else load_first_stage
        safe = _unpickled(folder.absolute(), scratch)
        return LoadedModel(_naming(folder, safe, lambda: load(safe, None)))
    if kind == FILMS:
        return LoadedModel(read_video_folder(folder, None))
    index = read_model_index(folder)
    parts = {name: folder / name for name in index if (folder / name).is_dir()}
    safe = {
        name: _unpickled(part, scratch / "parts") if name in model_folder.NETWORKS else part
        for name, part in parts.items()
    }
    source = folder
    if safe != parts:
        source = scratch / "model"
        source.mkdir()
        (source / INDEX).write_bytes(read_bytes(folder / INDEX))
        for name, part in safe.items():
            (source / name).symlink_to(part.resolve())
    model = _naming(folder, source, lambda: model_folder.read(source, None))
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
    found = _naming(path, source, lambda: _from_safetensors(source, path, ema=ema))
    return LoadedModel(found.model, [*notes, *found.notes])


def _from_safetensors(path: Path, given: Path, *, ema: bool) -> LoadedModel:
    """The model in a file; given: the file that it was unpacked from, or itself."""
    kind = extras.kind_of(path)
    if not kind and is_video_file(path):
        if ema:
            raise UndustError(f"{path} is {FILMS}, which has no moving averages")
        left = scan_video_file(path).ignored
        notes = [f"left out: {what} ({number} tensors)" for what, number in left.items()]
        return LoadedModel(read_video_file(path, None), notes)
    found = None if kind else scan_checkpoint(path, ema=ema)
    if ema and (found is None or found.variant is None):
        raise UndustError(f"{path} is {kind or FIRST_STAGE}, which has no moving averages")
    if kind == CONTROLNET:
        beside = path.with_name(CONFIG)
        network = _naming(given.with_name(CONFIG), beside, lambda: controlnet.load(path, None))
        spare = len(safetensors_file.header(path).tensors) - len(network.state_dict())
        notes = [f"left out: the model it was trained with ({spare} tensors)"] if spare else []
        return LoadedModel(network, notes)
    if found is None:
        return LoadedModel(extras.read(path, kind, given))
    notes = [f"left out: {what} ({number} tensors)" for what, number in found.ignored.items()]
    if found.variant is not None:
        return LoadedModel(load_single_file(path, None, ema=ema), notes)
    first_stage = cast(Autoencoder, found.load(None)["vae"])
    scale = first_stage.config.scaling_factor
    notes.append(
        f"the file of a first stage alone does not store the scale of its latents: {scale:g} is "
        "assumed, as in Stable Diffusion 1 and 2"
    )
    return LoadedModel(first_stage, notes)


def _naming(path: Path, copy: Path, read: Callable[[], T]) -> T:
    """The result of `read`; its errors name `path`, not the unpacked copy of it."""
    try:
        return read()
    except UndustError as error:
        raise UndustError(str(error).replace(str(copy), str(path))) from error


def _unpickled(component: Path, scratch: Path) -> Path:
    """The component's folder, or a copy with safe weights if it has only pickled ones."""
    found = [name for name in PICKLED if (component / name).exists()]
    if not found or any(component.glob(f"*{SUFFIX}")):
        return component
    copy = scratch / component.name
    copy.mkdir(parents=True)
    (copy / CONFIG).write_bytes(read_bytes(component / CONFIG))
    pickles.unpack(component / found[0], copy / PICKLED[found[0]])
    return copy


def _kind(model: Model) -> str:
    match model:
        case ExtraFile():
            return model.kind
        case ControlNet():
            return CONTROLNET
        case FirstStageNetwork():
            return FIRST_STAGE
        case VideoComponents():
            return FILMS
        case Components():
            return MODEL


def _existing_kind(path: Path, layout: str) -> str:
    """The kind of model at a path; "" for nothing. Raises UndustError for anything else."""
    if not path.exists() or (layout == "folder" and path.is_dir() and not any(path.iterdir())):
        return ""
    kind = _kind_of_folder(path) if layout == "folder" else _kind_of_file(path)
    if not kind:
        raise UndustError(f"{path} exists and is not a model; it is not replaced")
    return kind


def _kind_of_folder(folder: Path) -> str:
    """The kind of model in a folder; "" for other folders and for files."""
    if (folder / INDEX).is_file():
        return FILMS if is_video_folder(folder) else MODEL
    config = folder / CONFIG
    found = read_json(config).get("_class_name") if config.exists() else None
    return next((kind for base, kind in ALONE.items() if found in types_of(base)), "")


def _kind_of_file(path: Path) -> str:
    """The kind of model in a file; "" for other files and for folders."""
    try:
        if kind := extras.kind_of(path):
            return kind
        if is_video_file(path):
            return FILMS
        return MODEL if scan_checkpoint(path).variant else FIRST_STAGE
    except UndustError:
        return ""
