"""A LoRA file, read for the model that it is to change: every key is understood, or named."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from undust.errors import UndustError, shown
from undust.formats import safetensors_file
from undust.formats.folder import named
from undust.formats.lora import peft_config
from undust.formats.lora.factors import Factors, factors, magnitude, same
from undust.formats.lora.names import Target, lookup, split
from undust.formats.lora.peft_config import Configs

OTHERS = ("alpha", "bias", "dora_scale", "magnitude")  # roles beside the factors'
# What a file that does not fit may be, by its keys; the first that is found is said.
STRANGERS = {
    r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]": "a LoRA for Flux",
    r"(^|[._])joint_blocks[._]": "a LoRA for Stable Diffusion 3",
    r"^(lora_)?transformer[._]": "a LoRA for a transformer, not a U-Net",
    r"^lora_controlnet$": "a Control-LoRA",
    r"^(control_model|input_hint_block|controlnet_\w+)\.": "a ControlNet",
    r"^(emb_params|clip_[lg])$|string_to_param": "a textual inversion",
    r"^model\.diffusion_model\.|^first_stage_model\.": "a checkpoint of a whole model",
    r"^(down_blocks|mid_block|up_blocks)\.(?!.*lora)": "a part of a model folder",
    r"\.oft_(blocks|diag)$|\.oft_[RL]\.": "an OFT, a kind that is not known here",
    r"\.[ab][12]\.weight$": "a GLoRA, a kind that is not known here",
    r"\.on_input$": "an IA³, a kind that is not known here",
}
# How wide the text is that a U-Net sees.
FAMILIES = {
    768: "a LoRA for Stable Diffusion 1",
    1024: "a LoRA for Stable Diffusion 2",
    1280: "a LoRA for Stable Diffusion XL's refiner",
    2048: "a LoRA for Stable Diffusion XL",
}
TEXT = re.compile(r"attn2[._](?:processor\.)?to_[kv]$")


@dataclass(frozen=True, eq=False)
class Change:
    """What a file changes of one module.

    weight: the factors of ΔW before the scale, if any; magnitude: DoRA's, of a form that stretches
    over the weight; bias: Δb, if any.
    """

    weight: Factors | None
    scale: float = 1.0
    magnitude: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lora:
    """A file's changes of a model: its part → the module's name in that → the change.

    hash: SHA-256 of the file, hexadecimal. The tensors are pages of the file, not copies.
    """

    name: str
    hash: str
    changes: Mapping[str, Mapping[str, Change]]


def load(path: Path, networks: Mapping[str, nn.Module]) -> Lora:
    """Reads a file of any family for the parts of a model.

    networks: the U-Net and text encoders by the names of a model folder's parts, "unet",
    "text_encoder", "text_encoder_2". Raises UndustError for a file that is damaged or no LoRA, and
    for keys that mean no module, may mean several, or do not make what the module needs.
    """
    header = safetensors_file.header(path)
    tensors = safetensors_file.load(path)
    try:
        for key, tensor in tensors.items():
            factor = tensor.is_floating_point() and split(key)[1] != "alpha"
            if factor and not tensor.float().isfinite().all():
                raise UndustError(f"it is damaged: {shown(key)} holds NaN or infinity")
        configs = peft_config.read(path, tensors.keys(), header.metadata)
        found, faults = _sorted(tensors, networks)
        changes: defaultdict[str, dict[str, Change]] = defaultdict(dict)
        for target, keys in found.items():
            layer = networks[target.part].get_submodule(target.module)
            roles = {role: tensors[key] for role, key in keys.items()}
            try:
                changes[target.part][target.module] = _change(roles, layer, target, configs)
            except UndustError as error:
                faults.unusable[split(min(keys.values()))[0]] = str(error)
                faults.keys += keys.values()
        if not tensors or len(faults.unmatched) == len(tensors):
            raise _stranger(tensors)
        if faults.keys:
            raise UndustError(faults.text(tensors))
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    return Lora(path.stem, safetensors_file.content_hash(path), dict(changes))


@dataclass
class _Faults:
    """What is wrong with a file; `keys` are all that have a part in it."""

    keys: list[str] = field(default_factory=list[str])
    unmatched: list[str] = field(default_factory=list[str])
    ambiguous: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])
    unusable: dict[str, str] = field(default_factory=dict[str, str])

    def text(self, tensors: Mapping[str, Tensor]) -> str:
        """All of it in one line, the first few of a kind by name."""
        kinds = [
            *named("unmatched", self.unmatched),
            *named("ambiguous", self.ambiguous),
            *named("given twice", self.twice),
            *named("unusable", (f"{shown(name)} {why}" for name, why in self.unusable.items())),
        ]
        guess = _guess({key: tensors[key] for key in self.keys})
        looks = f"; it looks like {guess}" if guess else ""
        return f"it does not fit this model: {'; '.join(kinds)}{looks}"


def _sorted(
    tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]
) -> tuple[dict[Target, dict[str, str]], _Faults]:
    """The keys by their modules and roles, and those that have none or too many."""
    known = lookup(networks)
    found: defaultdict[Target, dict[str, str]] = defaultdict(dict)
    faults = _Faults()
    for key in sorted(tensors):
        module, role = split(key)
        targets = sorted(known.get(module, ())) if role else []
        if len(targets) == 1:
            first = found[targets[0]].setdefault(role, key)
            # Some files have the same under the names of both layouts.
            if first == key or _identical(tensors[first], tensors[key]):
                continue
            faults.twice.append(f"{key}, not as {first}")
        elif targets:
            faults.ambiguous.append(f"{key}, of {' or '.join(one.part for one in targets)}")
        else:
            faults.unmatched.append(key)
        faults.keys.append(key)
    return dict(found), faults


def _identical(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _change(roles: dict[str, Tensor], layer: nn.Module, target: Target, configs: Configs) -> Change:
    """A module's change, from its tensors."""
    shape = tuple(layer.get_parameter("weight").shape)
    change, rank = factors(
        {role: tensor for role, tensor in roles.items() if role not in OTHERS}, shape
    )
    bias = roles.get("bias")
    if bias is not None:
        own = getattr(layer, "bias", None)
        if own is None:
            raise UndustError("changes a bias that the module does not have")
        bias = same("bias", bias, tuple(own.shape))
    if change is None and bias is None:
        raise UndustError(f"has {' and '.join(sorted(roles))} alone")
    return Change(
        change,
        _scale(roles.get("alpha"), rank, target, configs),
        magnitude(roles.get("dora_scale"), roles.get("magnitude"), shape),
        bias,
    )


def _scale(alpha: Tensor | None, rank: int, target: Target, configs: Configs) -> float:
    """alpha/rank (Hu et al. 2021, section 4.1); 1 without an alpha, and where alpha is 0."""
    if alpha is None:
        return peft_config.scale(configs, target, rank) if rank else 1.0
    if alpha.numel() != 1 or alpha.is_complex() or not math.isfinite(value := float(alpha)):
        raise UndustError("has an alpha that is no number")
    return value / rank if value and rank else 1.0


def _stranger(tensors: Mapping[str, Tensor]) -> UndustError:
    """What a file is of which nothing fits."""
    guess = _guess(tensors)
    keys = sorted(tensors)
    examples = f"it holds {_examples(keys)}" if keys else "it holds no tensors"
    return UndustError(
        f"nothing in it fits this model: {f'it looks like {guess}; ' if guess else ''}{examples}"
    )


def _examples(keys: list[str]) -> str:
    return ", ".join(map(shown, keys[:3])) + (f" and {len(keys) - 3} more" if keys[3:] else "")


def _guess(tensors: Mapping[str, Tensor]) -> str:
    """What a file looks like; "" if that is not known."""
    return _kind(tensors.keys()) or _family(tensors)


def _kind(keys: Collection[str]) -> str:
    for pattern, what in STRANGERS.items():
        if any(re.search(pattern, key) for key in keys):
            return what
    return ""


def _family(tensors: Mapping[str, Tensor]) -> str:
    """Which models a LoRA is for, from the width of the text."""
    for key, tensor in tensors.items():
        module, role = split(key)
        if role == "lora_down" and tensor.ndim >= 2 and TEXT.search(module):
            return FAMILIES.get(tensor.shape[1], "")
    return ""
