"""Kinds of LoRA files by the names of their tensors: supported, unsupported and other files.

Used by `undust inspect` and by the loading of LoRAs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from undust.errors import UndustError
from undust.formats.lora import peft_config
from undust.formats.lora.names import split
from undust.formats.lora.peft_config import Configs

Shapes = Mapping[str, tuple[int, ...]]
SUPPORTED = "LoRA, LoHa, LoKr, DoRA and full differences"
# PEFT's other methods (its release 0.21): a tensor's name begins with the method's.
PEFT_METHODS = {
    "adamss": "AdaMSS",
    "beft": "BEFT",
    "boft": "BOFT",
    "bone": "Bone",
    "c3a": "C3A",
    "deft": "DEFT",
    "delora": "DeLoRA",
    "fourierft": "FourierFT",
    "frod": "FRoD",
    "glora": "GLoRA",
    "gralora": "GraLoRA",
    "hira": "HiRA",
    "hra": "HRA",
    "ia3": "IA³",
    "lily": "Lily",
    "ln_tuning": "LN tuning",
    "miss": "MiSS",
    "oft": "OFT",
    "osf": "OSF",
    "peanut": "PEANuT",
    "poly": "Poly",
    "psoft": "PSOFT",
    "pvera": "PVeRA",
    "randlora": "RandLoRA",
    "road": "RoAd",
    "shira": "SHiRA",
    "supertuning": "SuperTuning",
    "tinylora": "TinyLoRA",
    "unilora": "Uni-LoRA",
    "vblora": "VB-LoRA",
    "vera": "VeRA",
    "waveft": "WaveFT",
}
# LyCORIS, kohya and others: one such key decides the kind.
UNSUPPORTED = {
    r"\.oft_(blocks|diag)$": "OFT",
    r"\.([ab][12]|bm)\.weight$": "GLoRA",
    r"\.on_input$": "IA³",
    r"\.lambda_layer$": "T-LoRA",
    r"\.lora_E(\.[^.]+)?$": "AdaLoRA",
    r"\.lora_diag(\.[^.]+)?$": "KaSA",
    r"\.lora_monteclora_sampler\.": "MonteCLoRA",
    r"^lllite_": "ControlNet-LLLite",
}
METHOD = re.compile(rf"\.(?P<method>{'|'.join(PEFT_METHODS)})_\w+(?:\.\w+)?$")
# Keys of LoRAs for other models.
MODELS = {
    r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]": "Flux",
    r"(^|[._])joint_blocks[._]": "Stable Diffusion 3",
    r"^(lora_)?transformer[._]": "a transformer, not a U-Net",
}
# Keys of files that are not LoRAs.
NOT_LORAS = {
    r"^lora_controlnet$": "a Control-LoRA",
    r"^(control_model|input_hint_block|controlnet_\w+)\.": "a ControlNet",
    r"^(adapter\.)?body\.\d+\.": "a T2I-Adapter, which is not supported",
    r"^(emb_params|clip_[lg])$|string_to_param": "a textual inversion",
    r"^model\.diffusion_model\.|^first_stage_model\.": "a checkpoint of a whole model",
    r"^(down_blocks|mid_block|up_blocks)\.": "a part of a model folder",
}
# The width of the text → the family of models.
FAMILIES = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "Stable Diffusion XL's refiner",
    2048: "Stable Diffusion XL",
}
TEXT = re.compile(r"attn2[._](?:processor\.)?to_[kv]$")


def unsupported(shapes: Shapes, configs: Configs) -> str:
    """The kind of a file that cannot be used, such as "GLoRA"; "" for any other file."""
    for key, shape in shapes.items():
        if kind := _matching(UNSUPPORTED, (key,)):
            return "BOFT" if kind == "OFT" and len(shape) == 4 else kind  # LyCORIS'
        if found := METHOD.search(key):
            return PEFT_METHODS[found["method"]]
    return peft_config.unsupported(configs)


def refusal(kind: str) -> UndustError:
    """The error for a kind that is not supported."""
    if kind == "LoftQ":
        return UndustError("it is a LoftQ adapter, which needs the quantised model beside it")
    if kind in peft_config.OTHER_BASE.values():
        return UndustError(
            f"it is an adapter of {kind}, which needs a changed base model; save it again with "
            "PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…), then it is a "
            "plain LoRA"
        )
    return UndustError(f"its kind is {kind}, which is not supported; {SUPPORTED} are")


def other_model(keys: Collection[str]) -> str:
    """A model of another architecture that a LoRA is for, or ""."""
    return _matching(MODELS, keys)


def model(shapes: Shapes) -> str:
    """The model that a LoRA is for, by its keys or the width of the text; "" if unknown."""
    if other := other_model(shapes):
        return other
    for key, shape in shapes.items():
        module, role = split(key)
        if role == "lora_down" and len(shape) >= 2 and TEXT.search(module):
            return FAMILIES.get(shape[1], "")
    return ""


def other_file(keys: Collection[str]) -> str:
    """The kind of a file without any key of a LoRA; "" for a LoRA or an unknown file."""
    return "" if any(split(key)[1] for key in keys) else _matching(NOT_LORAS, keys)


def _matching(kinds: Mapping[str, str], keys: Collection[str]) -> str:
    """The first kind with a matching key, or ""."""
    found = (what for kind, what in kinds.items() if any(re.search(kind, key) for key in keys))
    return next(found, "")
