"""Detecting the variant of a file, with evidence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from undust.errors import UndustError, printable, quoted
from undust.formats.original.infer import Shapes
from undust.formats.original.variants import (
    CLASSES,
    FIRST_STAGE,
    SIZES,
    TEXTS,
    UNET,
    V_PREDICTION,
    VARIANTS,
    Variant,
)

ALONE_PREFIXES = (FIRST_STAGE, "vae.", "")  # of a first stage in a file of its own
# Networks trained to predict v have larger last biases than this. It distinguishes the two kinds of
# Stable Diffusion 2, whose tensors have the same names and shapes.
V_DEVIATION = 0.09
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # empty tensors: their presence alone has a meaning
PREDICTION_KEY = "modelspec.prediction_type"  # in a file's metadata, as trainers write it
PREDICTIONS = {
    **dict.fromkeys(("v", "vpred", "v_pred", V_PREDICTION), V_PREDICTION),
    **dict.fromkeys(("eps", "epsilon"), "epsilon"),
}
# Tensors of models of EDM's process, such as Playground 2.5 and CosXL.
EDM_MARK = re.compile(r"edm_(mean|std|vpred)\b.*")
# Keys of other kinds of files, for the error if no variant fits.
UNSUPPORTED = {
    r"^control_model\.|^controlnet_cond_embedding\.|^input_hint_block\.": "a ControlNet",
    r"lora_(up|down|[AB])\b|^lora_|\.lora\.|\.hada_w|\.lokr_w": "a LoRA",
    r"time_stack": "Stable Video Diffusion",
    r"joint_blocks\.": "Stable Diffusion 3",
    r"double_blocks\.": "Flux",
    r"^(down_blocks|up_blocks|encoder\.down_blocks|decoder\.up_blocks)\.": (
        "a part of a model folder, which wants its config.json beside it"
    ),
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"^(taesd_)?(encoder\.|decoder\.)?(layers\.)?\d{1,2}\.(conv\.\d\.)?(weight|bias)$": (
        "a tiny first stage (TAESD), which is read from its diffusers folder"
    ),
    r"^text_model\.|^transformer\.resblocks\.": "a text encoder alone",
    r"^(diffusion_model\.)?(input|output)_blocks\.": "a U-Net alone",
}


class Evidence(NamedTuple):
    """A finding in a file, and the tensor it is based on."""

    says: str
    where: str


def detect(
    shapes: Shapes, tensor: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[Variant, list[Evidence]]:
    """The variant of a file by the shapes of its tensors, and the evidence for it.

    tensor: reads one of them; metadata: the file's. Raises UndustError with the evidence if the
    variant is unknown.
    """
    facts = list(_evidence(shapes))
    fits = [variant for variant in VARIANTS.values() if _fits(variant, shapes)]
    if is_of_films(shapes):
        raise UndustError("it is a model of films; use it with `undust animate`")
    if edm := next(filter(EDM_MARK.fullmatch, shapes), ""):
        raise UndustError(
            f"it is a model of EDM's noise process, which {edm} shows, as Playground 2.5; such "
            "models are read from their diffusers folder, not from a single file"
        )
    if not fits:
        raise _unknown(shapes, facts)
    variant = fits[0]
    told = PREDICTIONS.get(_said(metadata))
    if V_MARK in shapes:
        variant = replace(fits[-1], prediction=V_PREDICTION)
        facts.append(Evidence("trained to predict v", V_MARK))
    elif told is not None:
        alike = [one for one in fits if one.prediction == told]
        variant = alike[0] if alike else replace(variant, prediction=told)
        facts.append(Evidence(f"trained to predict {told}", PREDICTION_KEY))
    elif len(fits) > 1:
        key = _last_bias(shapes)
        deviation = float(tensor(key).float().std(correction=0)) if key else 0.0
        prediction = V_PREDICTION if deviation > V_DEVIATION else "epsilon"
        variant = next(one for one in fits if one.prediction == prediction)
        facts.append(Evidence(f"deviation {deviation:.3f}, as of {prediction}", key))
    # Together with ε the mark is a leftover: ε cannot be predicted from pure noise.
    if ZERO_SNR_MARK in shapes and variant.prediction == V_PREDICTION:
        variant = replace(variant, zero_snr=True)
        facts.append(Evidence("trained to zero terminal SNR", ZERO_SNR_MARK))
    return variant, facts


def unread_prediction(variant: Variant, metadata: Mapping[str, str]) -> str:
    """A note on a prediction in a file's metadata that is not known here; "" for none."""
    if (said := _said(metadata)) in ("", *PREDICTIONS):
        return ""
    return (
        f"its {PREDICTION_KEY} is {quoted(said)}, none of {', '.join(PREDICTIONS)}; it is read as "
        f"a model that predicts {variant.prediction}"
    )


def _said(metadata: Mapping[str, str] | None) -> str:
    """The prediction in a file's metadata, in small letters; "" for none."""
    return (metadata or {}).get(PREDICTION_KEY, "").strip().lower().replace("-", "_")


def is_of_films(shapes: Shapes) -> bool:
    """Whether a file has a U-Net with layers over the frames of a film."""
    return any(map(is_over_frames, shapes))


def is_over_frames(key: str) -> bool:
    """Whether a tensor is of a U-Net's layer over the frames of a film."""
    return key.startswith(UNET) and ".time_stack." in key


def first_stage_alone(shapes: Shapes) -> str | None:
    """The prefix of the first stage in a file of one alone; None for other files."""
    if any(key.startswith((UNET, *TEXTS)) for key in shapes):
        return None
    for prefix in ALONE_PREFIXES:
        if f"{prefix}decoder.mid.block_1.norm1.weight" in shapes:
            return prefix
    return None


def _fits(variant: Variant, shapes: Shapes) -> bool:
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    added = [key for key in (SIZES, CLASSES) if UNET + key in shapes]
    texts = {prefix for prefix, text in TEXTS.items() if text.is_in(shapes)}
    return (
        first[1:2] == (variant.channels,)
        and added == list(filter(None, [variant.added]))
        and texts == {text.prefix for text in variant.texts}
    )


def _last_bias(shapes: Shapes) -> str:
    """The key of the first norm's bias in the last transformer of the U-Net."""
    name = f"{UNET}output_blocks.{{}}.1.transformer_blocks.0.norm1.bias"
    found = [key for number in range(len(shapes)) if (key := name.format(number)) in shapes]
    return found[-1] if found else ""


def _evidence(shapes: Shapes) -> Iterator[Evidence]:
    """Findings in a file, each with the tensor it is based on."""
    for says, name, axis in (
        ("U-Net of {} input channels", f"{UNET}input_blocks.0.0.weight", 1),
        ("a vector of {} channels beside the time step", f"{UNET}label_emb.0.0.weight", 1),
        ("{} classes beside the time step", f"{UNET}label_emb.weight", 0),
    ):
        if len(shapes.get(name, ())) > axis:
            yield _evident(says.format(shapes[name][axis]), name, shapes)
    keys = (key for key in shapes if key.startswith(UNET) and key.endswith(".attn2.to_k.weight"))
    if (attention := min(keys, default="")) and len(shapes[attention]) == 2:
        yield _evident(f"text width {shapes[attention][1]}", attention, shapes)
    for text in TEXTS.values():
        if text.is_in(shapes):
            name = text.tokens if text.tokens in shapes else text.short_tokens
            yield _evident(f"text encoder of {text.layout.title}", name, shapes)
    for prefix in ALONE_PREFIXES:
        if (name := f"{prefix}decoder.conv_in.weight") in shapes:
            yield _evident("first stage", name, shapes)
            return


def _evident(says: str, name: str, shapes: Shapes) -> Evidence:
    return Evidence(says, f"{name} {list(shapes[name])}")


def _unknown(shapes: Shapes, facts: Sequence[Evidence]) -> UndustError:
    """The error for a file of no known variant."""
    guesses = [
        name
        for pattern, name in UNSUPPORTED.items()
        if any(re.search(pattern, key) for key in shapes)
    ]
    groups = Counter(".".join(key.split(".")[:1]) for key in shapes).most_common(4)
    found = [fact.says for fact in facts] or [
        f"{printable(group)} ({amount} tensors)" for group, amount in groups
    ]
    guess = f"it looks like {guesses[0]}; " if guesses else ""
    if facts and not guess and not any(key.startswith(UNET) for key in shapes):
        guess = f"it has no U-Net ({UNET}…); "
    return UndustError(
        f"it is not a known model: {guess}found {', '.join(found) or 'no tensors'}; "
        f"known: {', '.join(VARIANTS)}"
    )
