"""ControlNets in a folder or a single file, with diffusers' keys or the original ones."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from undust.errors import UndustError, naming, printable
from undust.formats import safetensors_file
from undust.formats.components import load_component, types_of
from undust.formats.folder import load_into, read_json
from undust.formats.networks import empty_network
from undust.formats.original import infer, key_map, keys
from undust.formats.original.checkpoint import IGNORED
from undust.formats.original.infer import Shapes
from undust.formats.original.key_map import KeyMap, KeySpec
from undust.networks.config import ControlNetConfig
from undust.networks.controlnet import ControlNet

PREFIX = "control_model."  # of the original keys; some files omit it
PREFIXES = (PREFIX, "", "controlnet.", "module.")  # the last two are those of trainers
OURS, THEIRS = "controlnet_cond_embedding.conv_in.weight", "input_hint_block.0.weight"
LORA = "lora_controlnet"  # marks a Control-LoRA
# A key of another kind of file, which may have keys of a ControlNet too → what the file is.
UNSUPPORTED = {
    LORA: "a Control-LoRA",
    r"(.+\.)?difference": "a ControlNet's difference from a base model",
    r"(.+\.)?(task_embedding|control_add_embedding\..+)": "a ControlNet-Union",
    r"controlnet_blocks\..+": "a ControlNet for Flux or Stable Diffusion 3",
    r"(image_proj|ip_adapter)\..+": "an IP-Adapter",
    r"lllite_.+": "a ControlNet-LLLite",
    r"(adapter\.)?body\.\d+\..+": "a T2I-Adapter",
}
# The width of the text → the number of attention heads, which no shape shows.
HEADS = {768: infer.eight_heads, 1024: infer.heads_of_64, 2048: infer.heads_of_64}
# Keys of the model that it was trained with, in files of both.
TRAINED_WITH = r"(model|model_ema|first_stage_model|cond_stage_model)\..+"


def load(
    path: Path, dtype: torch.dtype | None = torch.float32, *, beside: Path | None = None
) -> ControlNet:
    """A ControlNet, ready for use: from a diffusers folder or a single file of either layout.

    Without a config.json, the configuration is inferred from the tensors. dtype: as
    `safetensors_file.load`; beside: the file whose config.json counts, if not `path`. Raises
    UndustError for a path without a ControlNet, and for missing, unknown and misshapen tensors.
    """
    if path.is_dir():
        network = load_component(path, ControlNet, dtype)
    else:
        network = _from_file(path, dtype, beside or path)
    return network.eval().requires_grad_(False)


def to_original(network: ControlNet) -> dict[str, Tensor]:
    """Its tensors under the original code's keys; `load` of the written file is exact."""
    tensors = network.state_dict()
    found = keys.controlnet(tensors.keys())
    return key_map.to_original(tensors, key_map.with_prefix(PREFIX, found))


def _from_file(path: Path, dtype: torch.dtype | None, beside: Path) -> ControlNet:
    entries = safetensors_file.header(path).tensors
    shapes = {key: entry.shape for key, entry in entries.items()}
    for kind, what in UNSUPPORTED.items():
        if any(re.fullmatch(kind, key) for key in shapes):
            raise UndustError(
                f"{path} is {what}, which is not supported; only whole ControlNets are"
            )
    try:
        network, where = _known(beside, shapes)
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        wanted = {spec.key for spec in where.values()}
        found = {key: entries[key] for key in entries if key in wanted or not _is_ignored(key)}
        key_map.check_tensors(found, own, where, "the ControlNet")
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    load_into(network, key_map.from_original(safetensors_file.load(path, dtype), where), path)
    return network


def _known(beside: Path, shapes: Shapes) -> tuple[ControlNet, KeyMap]:
    """The ControlNet of a file, without weights yet, and its key map."""
    prefix = next(
        (p for p in PREFIXES if not shapes.keys().isdisjoint((p + OURS, p + THEIRS))), None
    )
    if prefix is None:
        groups = Counter(key.split(".")[0] for key in shapes).most_common(4)
        held = ", ".join(f"{printable(group)} ({amount} tensors)" for group, amount in groups)
        raise UndustError(
            f"not a ControlNet: it has neither {OURS} nor {THEIRS}, but {held or 'nothing'}"
        )
    inside = {key[len(prefix) :]: shapes[key] for key in shapes if key.startswith(prefix)}
    see = _config if OURS in inside else partial(infer.controlnet, heads=HEADS)
    network = empty_network(ControlNet, _config_beside(beside) or see(inside))
    names = network.state_dict().keys()
    where = {name: KeySpec(name) for name in names} if OURS in inside else keys.controlnet(names)
    return network, key_map.with_prefix(prefix, where)


def _config(shapes: Shapes) -> ControlNetConfig:
    """The configuration of a file with diffusers' keys, inferred through the original ones."""
    theirs = {spec.key: shapes[name] for name, spec in keys.controlnet(shapes.keys()).items()}
    try:
        return infer.controlnet(theirs, heads=HEADS)
    except UndustError as error:
        raise UndustError(f"with the original keys, {error}") from error


def _config_beside(path: Path) -> ControlNetConfig | None:
    """The config.json beside a file, if it is of a ControlNet."""
    beside = path.with_name("config.json")
    fields = read_json(beside) if beside.exists() else {}
    if fields.get("_class_name") not in [*types_of(ControlNet)]:
        return None
    with naming(Path(beside.name)):  # beside the path that stands before the error
        return ControlNetConfig.read(fields)


def _is_ignored(key: str) -> bool:
    """Whether a tensor belongs to the model that the ControlNet was trained with."""
    return any(re.fullmatch(names, key) for names in (TRAINED_WITH, *IGNORED.values()))
