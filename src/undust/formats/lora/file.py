"""A LoRA file, read for the model that it is to change: every key is understood, or named.

Files hold more than fits everywhere: keys that no module of the model has are left out, and a
warning names them. An error is what would change the model wrongly: factors that do not make the
weight's shape, kinds of factors that are not known, and a file of which fewer than half of the
modules are the model's, since that is for another one.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from undust.errors import UndustError, shown
from undust.formats import safetensors_file, textual_inversion
from undust.formats.folder import named
from undust.formats.lora import peft_config
from undust.formats.lora.factors import Factors, factors, magnitude, same
from undust.formats.lora.names import Target, lookup, split
from undust.formats.lora.peft_config import Configs

OTHERS = ("alpha", "bias", "up_bias", "dora_scale", "magnitude")  # roles beside the factors'
# What a single key says that a file is, whatever else of it fits; the first that is found is said.
FOREIGN = {
    r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]": "a LoRA for Flux",
    r"(^|[._])joint_blocks[._]": "a LoRA for Stable Diffusion 3",
    r"^(lora_)?transformer[._]": "a LoRA for a transformer, not a U-Net",
    r"^lllite_": "a ControlNet-LLLite, a kind that is not known here",
    r"\.oft_(blocks|diag)$|\.oft_[RL]\.": "an OFT, a kind that is not known here",
    r"\.[ab][12]\.weight$": "a GLoRA, a kind that is not known here",
    r"\.on_input$": "an IA³, a kind that is not known here",
}
# What a file may be in which no key is a LoRA's.
STRANGERS = {
    r"^lora_controlnet$": "a Control-LoRA",
    r"^(control_model|input_hint_block|controlnet_\w+)\.": "a ControlNet",
    r"^(adapter\.)?body\.\d+\.": "a T2I-Adapter, a kind that is not known here",
    r"^(emb_params|clip_[lg])$|string_to_param": "a textual inversion",
    r"^model\.diffusion_model\.|^first_stage_model\.": "a checkpoint of a whole model",
    r"^(down_blocks|mid_block|up_blocks)\.": "a part of a model folder",
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
    "text_encoder", "text_encoder_2". A UserWarning names the keys that mean no module. Raises
    UndustError for a file that is damaged or no LoRA, for one of a kind that is not known or for
    another model, and for keys that may mean several modules, or do not make what the module needs.
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
            if roles.keys() == {"alpha"}:  # the scale of something that is not known, or not there
                faults.unmatched += keys.values()
                continue
            try:
                changes[target.part][target.module] = _change(roles, layer, target, configs)
            except UndustError as error:
                faults.unusable[split(min(keys.values()))[0]] = str(error)
                faults.wrong += keys.values()
        if len(faults.unmatched) == len(tensors):
            raise _stranger(tensors)
        fit = sum(map(len, changes.values()))
        absent = len({module for key in faults.unmatched if (module := split(key)[0])})
        if faults.wrong or fit < absent or _matching(FOREIGN, tensors):
            raise UndustError(faults.text(tensors))
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    if faults.unmatched:
        warnings.warn(faults.note(path), stacklevel=2)
    return Lora(path.stem, safetensors_file.content_hash(path), dict(changes))


@dataclass
class _Faults:
    """What is wrong with a file; `wrong` are all keys that cannot just be left out."""

    wrong: list[str] = field(default_factory=list[str])
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
        family = _family({key: tensors[key] for key in (*self.wrong, *self.unmatched)})
        guess = _kind(tensors) or family
        looks = f"; it looks like {guess}" if guess else ""
        return f"it does not fit this model: {'; '.join(kinds)}{looks}"

    def note(self, path: Path) -> str:
        """What is left out of a file, and what else would use it."""
        [left_out] = named("unmatched", self.unmatched)
        name = shown(path.name)
        learnt = any(textual_inversion.PLACE.fullmatch(key) for key in self.unmatched)
        other = f"; the word in it is taken by --embedding {name}=WORD" if learnt else ""
        return f"{name}: {left_out}; the rest is used{other}"


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
            continue
        faults.wrong.append(key)
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
    scale = _scale(roles.get("alpha"), rank, target, configs)
    if "bias" in roles and "up_bias" in roles:
        raise UndustError("has biases of two kinds")
    bias = roles.get("bias", roles.get("up_bias"))
    if bias is not None:
        own = getattr(layer, "bias", None)
        if own is None:
            raise UndustError("changes a bias that the module does not have")
        bias = same("bias", bias, tuple(own.shape))
        bias = bias.float() * scale if "up_bias" in roles else bias
    if change is None and "bias" not in roles:
        raise UndustError(f"has {' and '.join(sorted(roles))} alone")
    stretched = magnitude(roles.get("dora_scale"), roles.get("magnitude"), shape)
    return Change(change, scale, stretched, bias)


def _scale(alpha: Tensor | None, rank: int, target: Target, configs: Configs) -> float:
    """alpha/rank (Hu et al. 2021, section 4.1); 1 without an alpha, and where alpha is 0."""
    if alpha is None:
        return peft_config.scale(configs, target, rank) if rank else 1.0
    if alpha.numel() != 1 or alpha.is_complex() or not math.isfinite(value := float(alpha)):
        raise UndustError("has an alpha that is no number")
    return value / rank if value and rank else 1.0


def _stranger(tensors: Mapping[str, Tensor]) -> UndustError:
    """What a file is of which nothing fits."""
    guess = _kind(tensors) or _family(tensors)
    keys = sorted(tensors)
    examples = f"it holds {_examples(keys)}" if keys else "it holds no tensors"
    return UndustError(
        f"nothing in it fits this model: {f'it looks like {guess}; ' if guess else ''}{examples}"
    )


def _examples(keys: list[str]) -> str:
    return ", ".join(map(shown, keys[:3])) + (f" and {len(keys) - 3} more" if keys[3:] else "")


def _kind(keys: Collection[str]) -> str:
    """What a file looks like that is no LoRA, or none for such a model; "" if not known."""
    none = not any(split(key)[1] for key in keys)
    return _matching(FOREIGN, keys) or (_matching(STRANGERS, keys) if none else "")


def _matching(kinds: Mapping[str, str], keys: Collection[str]) -> str:
    """The first of the kinds of which there is a key, or ""."""
    found = (what for kind, what in kinds.items() if any(re.search(kind, key) for key in keys))
    return next(found, "")


def _family(tensors: Mapping[str, Tensor]) -> str:
    """Which models a LoRA is for, from the width of the text."""
    for key, tensor in tensors.items():
        module, role = split(key)
        if role == "lora_down" and tensor.ndim >= 2 and TEXT.search(module):
            return FAMILIES.get(tensor.shape[1], "")
    return ""
