"""A checkpoint in one file: what is in it, its networks, and the way back."""

from __future__ import annotations

import math
import re
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
)
from undust.formats.original.infer import Shapes
from undust.formats.original.key_map import KeyMap, Shape
from undust.formats.original.variants import (
    FIRST_STAGE,
    KL_VAE,
    UNET,
    NetworkSpec,
    Variant,
)
from undust.networks.config import NetworkConfig

AVERAGES = "moving averages of the weights"
# What files hold beside the networks: what it is, and its names.
IGNORED = {
    AVERAGES: r"(first_stage_model\.)?model_ema\..+",
    "noise schedule": (
        r"(low_scale_model\.|denoiser\.)?((sqrt_|log_)?(one_minus_|recip_|recipm1_)?"
        r"(betas|alphas_cumprod(_prev)?|sigmas)|posterior_\w+|lvlb_weights|logvar|scale_factor)"
    ),
    "training of the first stage": r"(first_stage_model\.)?loss\..+",
    "constants": r"(\S+\.)?(position_ids|attn_mask)",
    "training of CLIP": r"(\S+\.)?logit_scale",
    "CLIP's eyes": r"\S+\.(vision_model\..+|visual_projection\.weight)",
    "safety checker": r"safety_checker\..+",
    "training of words": r"embedding_manager\..+",
    "marks": f"{V_MARK}|{ZERO_SNR_MARK}",
}
UNUSED = "unused parts of the text encoder"
STRAY = "of nothing known"
BLOCK = re.compile(rf"(?:{re.escape(FIRST_STAGE)})?decoder\.up\.(\d{{1,3}})\.")


@dataclass(frozen=True)
class Component:
    """A network, as yet without weights, and where in the file they are."""

    network: nn.Module
    places: KeyMap

    @property
    def parameters(self) -> int:
        """How many numbers there are in all of its weights."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each of the places' tensors, in our form."""
        return {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}


@dataclass(frozen=True)
class Checkpoint:
    """What is in a file: known from its header, and held against what has to be there.

    variant: None for a first stage alone; parts: under the names that they have in a model folder,
    without a first stage if there is none; spare: what else there is → how many tensors;
    downsampling_factor: pixels along a side for one latent pixel; strays: tensors that belong to
    nothing known, and lie outside of the networks.
    """

    path: Path
    variant: Variant | None
    evidence: list[Evidence]
    parts: dict[str, Component]
    spare: dict[str, int]
    downsampling_factor: int
    strays: tuple[str, ...]

    def load(self, dtype: torch.dtype | None = torch.float32) -> dict[str, nn.Module]:
        """The networks, with their weights from the file, by the parts' names.

        dtype: of the weights, None for what each is in the file; nothing else than they is read,
        in the way of `safetensors_file.load`. Raises UndustError for a file that cannot be read any
        more.
        """
        for part in self.parts.values():
            wanted = {place.key for place in part.places.values()}
            tensors = safetensors_file.load(self.path, dtype, wanted)
            load_into(part.network, key_map.read(tensors, part.places), self.path)
        return {name: part.network for name, part in self.parts.items()}


def scan_checkpoint(path: Path, *, ema: bool = False, first_stage: bool = True) -> Checkpoint:
    """What a checkpoint in one file is.

    ema: take the moving averages of the U-Net's weights, not the last ones; first_stage: whether
    its first stage is wanted, or another one used. Raises UndustError for a file that is damaged,
    of no known model, or whose tensors are not those of such a model: what is missing, what is
    unknown, what is of another shape.
    """
    header = safetensors_file.header(path)
    entries = header.tensors
    shapes = {key: entry.shape for key, entry in entries.items()}
    try:
        variant, facts, parts = _known(path, shapes, header.metadata, first_stage=first_stage)
        if ema and "unet" in parts:
            parts["unet"] = _averaged(parts["unet"], shapes)
        ours = {f"{at}/{name}": shape for at in parts for name, shape in parts[at].shapes.items()}
        where = {f"{at}/{name}": place for at in parts for name, place in parts[at].places.items()}
        wanted = {place.key for place in where.values()}
        beside = {key: _spare(key, variant, ema=ema) for key in shapes.keys() - wanted}
        # Of a file that lacks something all is shown that is left over.
        whole = wanted <= shapes.keys()
        strays = [key for key in beside if whole and not beside[key] and _apart(key, variant)]
        beside |= dict.fromkeys(strays, STRAY)
        if not first_stage:
            others = [key for key in beside if key.startswith(FIRST_STAGE)]
            beside |= dict.fromkeys(others, "its own first stage")
        found = {key: shape for key, shape in shapes.items() if not beside.get(key)}
        key_map.check(found, ours, where, variant.title if variant else "a first stage")
        for key in sorted(wanted):
            if not entries[key].dtype.is_floating_point:
                raise UndustError(f"{key} holds {entries[key].dtype}, not weights")
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    spare = dict(Counter(sorted(beside.values())))
    factor = _factor(variant, shapes)
    return Checkpoint(path, variant, facts, parts, spare, factor, tuple(sorted(strays)))


def original(
    variant: Variant | None, parts: Mapping[str, tuple[NetworkConfig, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    """The tensors of a model's parts as the original code names and forms them.

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
            raise UndustError(f"the original layout has no place for {name}")
        spec = specs[name]
        tensors |= key_map.write(own, key_map.under(spec.prefix, spec.keys(own.keys(), config)))
    return tensors


def _known(
    path: Path, shapes: Shapes, metadata: Mapping[str, str], *, first_stage: bool
) -> tuple[Variant | None, list[Evidence], dict[str, Component]]:
    """Which variant a file is of, why, and its parts."""
    prefix = first_stage_alone(shapes)
    if prefix is not None:
        shown_by = Evidence("first stage alone", f"{prefix}decoder.mid.block_1.norm1.weight")
        return None, [shown_by], {"vae": _component(shapes, replace(KL_VAE, prefix=prefix))}
    variant, facts = detect(shapes, lambda key: safetensors_file.load(path)[key], metadata)
    parts = {text.folder: _component(shapes, text.network(shapes)) for text in variant.texts}
    latent = variant.size // _factor(variant, shapes)
    parts["unet"] = _component(shapes, variant.network, sample_size=latent)
    spec = variant.first_stage
    if first_stage and any(key.startswith(spec.prefix) for key in shapes):
        known = {"scaling_factor": variant.scaling_factor, "sample_size": variant.size}
        parts["vae"] = _component(shapes, spec, **known)
    return variant, facts, parts


def _component(shapes: Shapes, spec: NetworkSpec, **known: object) -> Component:
    """A network of a file, as yet without weights; known: what its tensors do not tell."""
    prefix, omitted = spec.prefix, spec.omitted
    below = {omitted + key[len(prefix) :]: shapes[key] for key in shapes if key.startswith(prefix)}
    try:
        config = spec.infer(below, **known)
    except UndustError as error:
        raise UndustError(f"{prefix}…: {error}") from error
    network = COMPONENTS[spec.class_name].empty(config)
    found = spec.keys(network.state_dict(), config)
    return Component(network, key_map.under(prefix, found, omitted))


def _averaged(part: Component, shapes: Shapes) -> Component:
    """The same network, its weights from their moving averages."""
    averages = {
        name: place._replace(key=keys.ema(place.key)) for name, place in part.places.items()
    }
    if not any(place.key in shapes for place in averages.values()):
        raise UndustError("it holds no moving averages of the U-Net's weights")
    return Component(part.network, averages)


def _spare(key: str, variant: Variant | None, *, ema: bool) -> str:
    """What a tensor is that no network needs; "" if that is not known."""
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
    """How many pixels, along a side, one of the latent stands for."""
    blocks = {match[1] for key in shapes if (match := BLOCK.match(key))}
    return 2 ** (len(blocks) - 1) if blocks else variant.downsampling_factor if variant else 8


def _apart(key: str, variant: Variant | None) -> bool:
    """Whether a tensor lies outside of a model's networks and tells of no other kind of model."""
    if variant is None or key.startswith((UNET, FIRST_STAGE, *(t.prefix for t in variant.texts))):
        return False
    return not any(re.search(pattern, key) for pattern in UNSUPPORTED)
