"""The keys of LoRA files: the module of the model, and the role of the tensor in its change.

A module's name cannot be derived from a key in which "." became "_". So all names that a module
may have in files are generated from its own, and keys are looked up among them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from undust.errors import UndustError
from undust.formats.original import keys as original_keys
from undust.networks.unet import UNet

# Modules that are linear in weight and bias, so that LoRAs can be merged or added to the output.
CHANGED = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)
PEFT = "base_model.model."
# Prefixes of module names with dots (diffusers, PEFT), and with "_" for dots (kohya, LyCORIS).
# CLIP is clip_l, clip_h and clip_g to ComfyUI and to the Open Model Initiative.
DOTTED = {
    "unet": ("", "unet.", "unet.unet.", "diffusion_model.", "model.diffusion_model."),
    "text_encoder": (
        *("", "text_encoder.", "clip_l."),
        *("text_encoders.clip_l.transformer.", "text_encoders.clip_h.transformer."),
    ),
    "text_encoder_2": ("", "text_encoder_2.", "clip_g.", "text_encoders.clip_g.transformer."),
}
FLAT = {
    "unet": ("lora_unet_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
ONLY_ENCODER = "lora_te_"  # the only text encoder, also where it is the second of its family
# Files may call a refiner's only text encoder the first, unless they have keys of the second too.
FIRST_ENCODER, SECOND_ENCODER = ("text_encoder.", "lora_te1_"), ("text_encoder_2.", "lora_te2_")
OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
ROLES = {
    "lora_up": r"(?:\.lora_up|[._]lora\.up|\.lora_linear_layer\.up|\.lora_B(?:\.[^.]+)?)\.weight",
    "lora_down": (
        r"(?:\.lora_down|[._]lora\.down|\.lora_linear_layer\.down|\.lora_A(?:\.[^.]+)?)\.weight"
    ),
    "lora_mid": r"\.lora_mid\.weight",
    **{
        role: rf"\.{role}"
        for role in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        )
    },
    "diff": r"\.(?:diff|w_norm)",
    "bias": r"\.(?:diff_b|b_norm)",
    "up_bias": r"\.lora_B(?:\.[^.]+)?\.bias",  # PEFT's, a part of lora_up and scaled with it
    "alpha": r"(?:[._]lora)?\.alpha",
    "dora_scale": r"\.dora_scale",
    # PEFT's, and diffusers' conversion of it for other programs.
    "magnitude": r"\.lora_magnitude_vector(?:\.[^.]+){0,2}|\.dora_scale\.weight",
}
ROLE = re.compile(rf"(?:{'|'.join(f'(?P<{role}>{text})' for role, text in ROLES.items())})\Z")


class Target(NamedTuple):
    """A module of a model: the folder name of its network, and its own name."""

    part: str
    module: str


def split(key: str) -> tuple[str, str]:
    """A key's module, by its name in the file, and its role; ("", "") for other keys."""
    found = ROLE.search(key)
    if found is None or found.lastgroup is None:
        return "", ""
    return key[: found.start()].replace(PEFT, "", 1), found.lastgroup


def only_encoder_is_first(networks: Mapping[str, nn.Module], keys: Iterable[str]) -> bool:
    """Whether the file's first text encoder is the model's only one, its second."""
    return "text_encoder" not in networks and not any(
        key.startswith(SECOND_ENCODER) for key in keys
    )


def lookup(networks: Mapping[str, nn.Module], keys: Iterable[str] = ()) -> dict[str, set[Target]]:
    """Every name that a file may use for a module of these networks → the possible modules.

    networks: "unet", "text_encoder", "text_encoder_2", as far as the model has them; keys: all that
    are in the file.
    """
    known: defaultdict[str, set[Target]] = defaultdict(set)
    alone = "" if "text_encoder" in networks else "text_encoder_2"
    first = FIRST_ENCODER if only_encoder_is_first(networks, keys) else ()
    for part, network in networks.items():
        more = (ONLY_ENCODER, *first) if part == alone else ()
        dotted = *DOTTED[part], *(prefix for prefix in more if prefix.endswith("."))
        flat = *FLAT[part], *(prefix for prefix in more if prefix.endswith("_"))
        original = original_names(network)
        for module, layer in network.named_modules():
            if not isinstance(layer, CHANGED):
                continue
            for name in {*_spellings(module), original.get(module, module)}:
                for prefix in dotted:
                    known[prefix + name].add(Target(part, module))
                for prefix in flat:
                    known[prefix + name.replace(".", "_")].add(Target(part, module))
    return dict(known)


def _spellings(name: str) -> Iterator[str]:
    """A module's name in all versions of diffusers and transformers."""
    yield name
    yield name.removeprefix("text_model.")  # transformers 5 leaves it off
    block, attention, inside = name.rpartition(".self_attn.")
    if inside in OLD_TEXT:
        yield f"{block}{attention}{OLD_TEXT[inside]}"
    attention, _, inside = name.rpartition(".to_")
    if attention:
        short = inside.removesuffix(".0")
        yield f"{attention}.to_{short}"
        yield f"{attention}.processor.to_{inside}"
        yield f"{attention}.processor.to_{short}"


def original_names(network: nn.Module) -> dict[str, str]:
    """The original names of a U-Net's modules, which kohya uses for SDXL."""
    if not isinstance(network, UNet):
        return {}
    modules = [name for name, layer in network.named_modules() if isinstance(layer, CHANGED)]
    try:
        places = original_keys.unet((f"{name}.weight" for name in modules), network.config)
    except UndustError:
        return {}  # a kind of U-Net that the original code never had
    return {name: places[f"{name}.weight"].key.removesuffix(".weight") for name in modules}
