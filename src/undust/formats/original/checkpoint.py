"""A checkpoint in a single file of the original layout: scanned, loaded and written."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import COMPONENTS
from undust.formats.folder import load_into
from undust.formats.original import key_map, keys
from undust.formats.original.detect import (
    UNSUPPORTED,
    V_MARK,
    ZERO_SNR_MARK,
    Evidence,
    detect,
    first_stage_alone,
    unread_prediction,
)
from undust.formats.original.infer import Shapes
from undust.formats.original.key_map import KeyMap, KeySpec, Shape
from undust.formats.original.variants import (
    FIRST_STAGE,
    KL_VAE,
    UNET,
    NetworkSpec,
    Variant,
)
from undust.networks.config import NetworkConfig

AVERAGES = "moving averages of the weights"
# Tensors of files beside the networks: a description → its keys.
IGNORED = {
    AVERAGES: r"(first_stage_model\.)?model_ema\..+",
    "noise schedule": (
        r"(low_scale_model\.|denoiser\.)?((sqrt_|log_)?(one_minus_|recip_|recipm1_)?"
        r"(betas|alphas_cumprod(_prev)?|sigmas)|posterior_\w+|lvlb_weights|logvar|scale_factor)"
    ),
    "training of the first stage": r"(first_stage_model\.)?loss\..+",
    "constants": r"(\S+\.)?(position_ids|attn_mask)",
    "training of CLIP": r"(\S+\.)?logit_scale",
    "CLIP's image encoder": r"\S+\.(vision_model\..+|visual_projection\.weight)",
    "safety checker": r"safety_checker\..+",
    "training of embeddings": r"embedding_manager\..+",
    "marks": f"{V_MARK}|{ZERO_SNR_MARK}",
}
UNUSED = "unused parts of the text encoder"
UNKNOWN = "unknown tensors"
BLOCK = re.compile(rf"(?:{re.escape(FIRST_STAGE)})?decoder\.up\.(\d{{1,3}})\.")


@dataclass(frozen=True)
class Component:
    """A network without weights yet, and their keys in the file."""

    network: nn.Module
    key_map: KeyMap

    @property
    def parameters(self) -> int:
        """The number of its parameters."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each tensor of the key map, in our layout."""
        return {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a file by its header, checked for completeness.

    variant: None for a first stage alone; parts: by their names in a model folder, without a first
    stage if there is none; ignored: a description of other tensors → how many there are;
    downsampling_factor: pixels along a side for one latent pixel; unknown: keys outside of the
    networks that belong to nothing known.
    """

    path: Path
    variant: Variant | None
    evidence: list[Evidence]
    parts: dict[str, Component]
    ignored: dict[str, int]
    downsampling_factor: int
    unknown: tuple[str, ...]

    def load(self, dtype: torch.dtype | None = torch.float32) -> dict[str, nn.Module]:
        """The networks with their weights, by the names of the parts.

        dtype: of the weights, None for that of each in the file, as `safetensors_file.load`.
        Nothing else is read. Raises UndustError if the file cannot be read any more.
        """
        for part in self.parts.values():
            wanted = {spec.key for spec in part.key_map.values()}
            tensors = safetensors_file.load(self.path, dtype, wanted)
            load_into(part.network, key_map.from_original(tensors, part.key_map), self.path)
        return {name: part.network for name, part in self.parts.items()}


def scan_checkpoint(path: Path, *, ema: bool = False, first_stage: bool = True) -> Checkpoint:
    """The contents of a checkpoint in a single file, by its header.

    ema: take the moving averages of the U-Net's weights, not the last ones; first_stage: whether
    its first stage is needed. A RuntimeWarning tells a prediction in its metadata that is not
    known. Raises UndustError for a file that is damaged or not of a known variant, and for tensors
    that are missing, unknown or of another shape.
    """
    header = safetensors_file.header(path)
    entries = header.tensors
    shapes = {key: entry.shape for key, entry in entries.items()}
    try:
        variant, facts, parts = _known(path, shapes, header.metadata, first_stage=first_stage)
        if ema and "unet" in parts:
            parts["unet"] = _averaged(parts["unet"], shapes)
        ours, where = together(parts)
        wanted = {spec.key for spec in where.values()}
        beside = {key: _ignored(key, variant, ema=ema) for key in shapes.keys() - wanted}
        # If tensors are missing, the error lists all that are left over.
        whole = wanted <= shapes.keys()
        unknown = [key for key in beside if whole and not beside[key] and _is_outside(key, variant)]
        beside |= dict.fromkeys(unknown, UNKNOWN)
        if not first_stage:
            others = [key for key in beside if key.startswith(FIRST_STAGE)]
            beside |= dict.fromkeys(others, "its own first stage")
        found = {key: entry for key, entry in entries.items() if not beside.get(key)}
        key_map.check_tensors(found, ours, where, variant.title if variant else "a first stage")
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    if variant and (note := unread_prediction(variant, header.metadata)):
        warnings.warn(f"{path}: {note}", RuntimeWarning, stacklevel=2)
    ignored = dict(Counter(sorted(beside.values())))
    factor = _factor(variant, shapes)
    return Checkpoint(path, variant, facts, parts, ignored, factor, tuple(sorted(unknown)))


def to_original(
    variant: Variant | None, parts: Mapping[str, tuple[NetworkConfig, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    """The tensors of a model's parts under the original code's keys and in its layouts.

    variant: None for a first stage alone; parts: by the names of a model folder's, each with our
    names and forms. `scan_checkpoint` and `load` of the written file give it back to the bit.
    Raises UndustError for a tensor or a part without a name in the original layout.
    """
    specs = {"vae": replace(KL_VAE, prefix="")}
    if variant:
        texts = {text.folder: text.network() for text in variant.texts}
        specs = {"vae": variant.first_stage, "unet": variant.network, **texts}
    tensors: dict[str, Tensor] = {}
    for name, (config, own) in parts.items():
        if name not in specs:
            raise UndustError(f"the original layout has no {name}")
        spec = specs[name]
        tensors |= key_map.to_original(
            own, key_map.with_prefix(spec.prefix, spec.keys(own.keys(), config))
        )
    return tensors


def _known(
    path: Path, shapes: Shapes, metadata: Mapping[str, str], *, first_stage: bool
) -> tuple[Variant | None, list[Evidence], dict[str, Component]]:
    """The variant of a file, the evidence for it, and its parts."""
    prefix = first_stage_alone(shapes)
    if prefix is not None:
        shown_by = Evidence("first stage alone", f"{prefix}decoder.mid.block_1.norm1.weight")
        return None, [shown_by], {"vae": empty_part(shapes, replace(KL_VAE, prefix=prefix))}
    variant, facts = detect(shapes, lambda key: safetensors_file.load(path)[key], metadata)
    parts = {text.folder: empty_part(shapes, text.network(shapes)) for text in variant.texts}
    latent = variant.size // _factor(variant, shapes)
    parts["unet"] = empty_part(shapes, variant.network, sample_size=latent)
    spec = variant.first_stage
    if first_stage and any(key.startswith(spec.prefix) for key in shapes):
        known = {"scaling_factor": variant.scaling_factor, "sample_size": variant.size}
        parts["vae"] = empty_part(shapes, spec, **known)
    return variant, facts, parts


def together(parts: Mapping[str, Component]) -> tuple[dict[str, Shape], dict[str, KeySpec]]:
    """The shapes and the key map of all parts of a file, under "part/name"."""
    ours = {f"{at}/{name}": shape for at in parts for name, shape in parts[at].shapes.items()}
    where = {f"{at}/{name}": spec for at in parts for name, spec in parts[at].key_map.items()}
    return ours, where


def empty_part(shapes: Shapes, spec: NetworkSpec, **known: object) -> Component:
    """A network of a file, without weights yet; known: fields that its tensors do not show."""
    prefix, omitted = spec.prefix, spec.omitted
    below = {omitted + key[len(prefix) :]: shapes[key] for key in shapes if key.startswith(prefix)}
    try:
        config = spec.infer(below, **known)
    except UndustError as error:
        raise UndustError(f"{prefix}…: {error}") from error
    network = COMPONENTS[spec.class_name].empty(config)
    found = spec.keys(network.state_dict(), config)
    return Component(network, key_map.with_prefix(prefix, found, omitted))


def _averaged(part: Component, shapes: Shapes) -> Component:
    """The same network with the moving averages of its weights."""
    averages = {name: spec._replace(key=keys.ema(spec.key)) for name, spec in part.key_map.items()}
    if not any(spec.key in shapes for spec in averages.values()):
        raise UndustError("it has no moving averages of the U-Net's weights")
    return Component(part.network, averages)


def _ignored(key: str, variant: Variant | None, *, ema: bool) -> str:
    """A description of a tensor that no network needs; "" for an unknown one."""
    if ema and key.startswith(UNET):
        return "last weights of the U-Net"
    texts = variant.texts if variant else ()
    for text in (text for text in texts if key.startswith(text.prefix)):
        inside = key.removeprefix(text.prefix)
        projection = re.fullmatch(r"text_projection(\.weight)?", inside)
        block = re.match(r"transformer\.resblocks\.(\d{1,9})\.", inside)
        if projection and not text.pooled:
            return UNUSED
        if block and text.layers and int(block[1]) >= text.layers:
            return UNUSED
    return next((what for what, names in IGNORED.items() if re.fullmatch(names, key)), "")


def _factor(variant: Variant | None, shapes: Shapes) -> int:
    """Pixels along a side for one latent pixel."""
    blocks = {match[1] for key in shapes if (match := BLOCK.match(key))}
    return 2 ** (len(blocks) - 1) if blocks else variant.downsampling_factor if variant else 8


def _is_outside(key: str, variant: Variant | None) -> bool:
    """Whether a tensor is outside of the networks and not of another kind of model."""
    if variant is None or key.startswith((UNET, FIRST_STAGE, *(t.prefix for t in variant.texts))):
        return False
    return not any(re.search(pattern, key) for pattern in UNSUPPORTED)
