"""A LoRA file, read for the model that it changes: unknown keys are named, never ignored silently.

Files hold more than fits everywhere: keys that no module of the model has are left out, and a
warning names them. An error is what would change the model wrongly: factors that do not make the
weight's shape, kinds of factors that are not known, and a file of which fewer than half of the
modules are the model's, since that is for another one.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from undust.errors import UndustError, printable
from undust.formats import safetensors_file, textual_inversion
from undust.formats.folder import summarize_names
from undust.formats.known_hashes import known_hash
from undust.formats.lora import kinds, peft_config
from undust.formats.lora.factors import Factors, Kronecker, factors, magnitude, same
from undust.formats.lora.names import Target, lookup, only_encoder_is_first, split
from undust.formats.lora.peft_config import Configs

IN_FOLDERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call a LoRA in a folder of its own."""
OTHER_ROLES = ("alpha", "bias", "up_bias", "dora_scale", "magnitude")  # roles beside the factors'


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """The change of one module.

    weight: the factors of ΔW before the scale, if any; magnitude: DoRA's, of a form that stretches
    over the weight; bias: Δb, if any.
    """

    weight: Factors | None
    scale: float = 1.0
    magnitude: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lora:
    """The changes of a model: the name of a network → the name of a module → the change.

    hash: SHA-256 of the file, hexadecimal. The tensors are memory-mapped.
    """

    name: str
    hash: str
    changes: Mapping[str, Mapping[str, WeightDelta]]


def lora_file(path: Path) -> Path:
    """The file of a LoRA at a path, which may be PEFT's or diffusers' folder of one.

    Raises UndustError for a folder without one.
    """
    if not path.is_dir():
        return path
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise UndustError(f"{path} is a folder without a LoRA's {' or '.join(IN_FOLDERS)}")


def load_lora(path: Path, networks: Mapping[str, nn.Module]) -> Lora:
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
                raise UndustError(f"it is damaged: {printable(key)} holds NaN or infinity")
        configs = peft_config.read(path, tensors.keys(), header.metadata)
        if only_encoder_is_first(networks, tensors):
            configs = peft_config.for_only_encoder(configs)
        shapes = {key: entry.shape for key, entry in header.tensors.items()}
        if kind := kinds.unsupported(shapes, configs):
            raise kinds.refusal(kind)
        found, faults = _sorted(tensors, networks)
        changes: defaultdict[str, dict[str, WeightDelta]] = defaultdict(dict)
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
        if faults.wrong or fit < absent or kinds.other_model(tensors):
            raise UndustError(faults.text(tensors))
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    if faults.unmatched:
        warnings.warn(faults.note(path), stacklevel=2)
    return Lora(path.stem, known_hash(path), dict(changes))


@dataclass
class _Faults:
    """The faults of a file; wrong: all keys that cannot be ignored."""

    wrong: list[str] = field(default_factory=list[str])
    unmatched: list[str] = field(default_factory=list[str])
    ambiguous: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])
    unusable: dict[str, str] = field(default_factory=dict[str, str])

    def text(self, tensors: Mapping[str, Tensor]) -> str:
        """All faults in one line, with the first few names of each kind."""
        unusable = (f"{printable(name)} {why}" for name, why in self.unusable.items())
        found = [
            *summarize_names("unmatched", self.unmatched),
            *summarize_names("ambiguous", self.ambiguous),
            *summarize_names("given twice", self.twice),
            *summarize_names("unusable", unusable),
        ]
        guess = _looks(tensors, (*self.wrong, *self.unmatched))
        looks = f"; it looks like {guess}" if guess else ""
        return f"it does not fit this model: {'; '.join(found)}{looks}"

    def note(self, path: Path) -> str:
        """A note on the unused keys of a file, and another use of them."""
        [left_out] = summarize_names("unmatched", self.unmatched)
        name = printable(path.name)
        learnt = any(textual_inversion.BARE_KEY.fullmatch(key) for key in self.unmatched)
        other = f"; load the embedding in it with --embedding {name}=WORD" if learnt else ""
        return f"{name}: {left_out}; the rest is used{other}"


def _sorted(
    tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]
) -> tuple[dict[Target, dict[str, str]], _Faults]:
    """The keys by their modules and roles, and the faults of the others."""
    known = lookup(networks, tensors)
    found: defaultdict[Target, dict[str, str]] = defaultdict(dict)
    faults = _Faults()
    for key in sorted(tensors):
        module, role = split(key)
        targets = sorted(known.get(module, ())) if role else []
        if len(targets) == 1:
            first = found[targets[0]].setdefault(role, key)
            # Some files have the same tensors under the names of both layouts.
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


def _change(
    roles: dict[str, Tensor], layer: nn.Module, target: Target, configs: Configs
) -> WeightDelta:
    """A module's change, from its tensors."""
    shape = tuple(layer.get_parameter("weight").shape)
    change, rank = factors(
        {role: tensor for role, tensor in roles.items() if role not in OTHER_ROLES}, shape
    )
    if "alpha" in roles:
        scale = _scale(roles["alpha"], rank)
    elif rank or isinstance(change, Kronecker):  # PEFT's LoKr is scaled also where it has no rank
        scale = peft_config.scale(configs, target, rank)
    else:
        scale = 1.0
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
    return WeightDelta(change, scale, stretched, bias)


def _scale(alpha: Tensor, rank: int) -> float:
    """alpha/rank (Hu et al. 2021, section 4.1); 1 without a rank, and where alpha is 0."""
    if alpha.numel() != 1 or alpha.is_complex() or not math.isfinite(value := float(alpha)):
        raise UndustError("has an alpha that is not a number")
    return value / rank if value and rank else 1.0


def _stranger(tensors: Mapping[str, Tensor]) -> UndustError:
    """The error for a file of which nothing fits."""
    guess = _looks(tensors, tensors)
    keys = sorted(tensors)
    examples = f"it holds {_examples(keys)}" if keys else "it holds no tensors"
    return UndustError(
        f"nothing in it fits this model: {f'it looks like {guess}; ' if guess else ''}{examples}"
    )


def _examples(keys: list[str]) -> str:
    return ", ".join(map(printable, keys[:3])) + (f" and {len(keys) - 3} more" if keys[3:] else "")


def _looks(tensors: Mapping[str, Tensor], strange: Collection[str]) -> str:
    """A guess of what a file with these unfitting keys is; "" for none."""
    other = kinds.other_model(tensors)
    found = other or kinds.model({key: tuple(tensors[key].shape) for key in strange})
    return (not other and kinds.other_file(tensors)) or (f"a LoRA for {found}" if found else "")
