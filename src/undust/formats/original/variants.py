"""The published families of models: which one a file is, and what its tensors cannot tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from undust.diffusion.process import DISCRETE, VP, zero_terminal_snr
from undust.errors import UndustError, printable
from undust.formats.original.infer import CLIP_NAMES, Kind, Shapes

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
LOOSE_FIRST_STAGES = (FIRST_STAGE, "vae.", "")
V_PREDICTION = "v_prediction"
# The networks that v trained have this much larger biases at the end: what tells the two kinds of
# Stable Diffusion 2 apart, whose tensors have the same names and shapes.
V_DEVIATION = 0.09
ADDED = ("label_emb.0.0.weight", "label_emb.weight")
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # tensors that only say something by being there
PREDICTION_KEY = "modelspec.prediction_type"  # of a file's metadata, as trainers write it
PREDICTIONS_TOLD = {"v": V_PREDICTION, V_PREDICTION: V_PREDICTION, "epsilon": "epsilon"}
# What other files that people have hold, to be named when nothing fits.
STRANGERS = {
    r"^control_model\.|^controlnet_cond_embedding\.|^input_hint_block\.": "a ControlNet",
    r"lora_(up|down|[AB])\b|^lora_|\.lora\.|\.hada_w|\.lokr_w": "a LoRA",
    r"time_stack": "Stable Video Diffusion",
    r"edm_(mean|std|vpred)": "a model of another process (EDM)",
    r"joint_blocks\.": "Stable Diffusion 3",
    r"double_blocks\.": "Flux",
    r"^(down_blocks|up_blocks|encoder\.down_blocks|decoder\.up_blocks)\.": (
        "a part of a model folder, which wants its config.json beside it"
    ),
    r"^text_model\.|^transformer\.resblocks\.": "a text encoder alone",
    r"^(diffusion_model\.)?(input|output)_blocks\.": "a U-Net alone",
}


@dataclass(frozen=True)
class TextEncoderSpec:
    """A text encoder, and how the U-Net was shown its states.

    part: its folder's name; layers: as many are used at most, though the file have more;
    penultimate: the states before the last of them and without the final norm are what is seen,
    not those after it; pooled: the end's state, projected, is seen too; padding: the token
    after the end.
    """

    part: str
    prefix: str
    kind: Kind
    activation: Literal["quick_gelu", "gelu"]
    layers: int | None = None
    penultimate: bool = False
    pooled: bool = False
    padding: str = "<|endoftext|>"

    @property
    def short(self) -> str:
        """What some files call it who leave out `text_model.`."""
        return self.prefix + CLIP_NAMES[self.kind]["tokens"].removeprefix("text_model.")

    def there(self, names: Iterable[str]) -> bool:
        """Whether it is among a file's tensors."""
        return not {self.short, self.prefix + CLIP_NAMES[self.kind]["tokens"]}.isdisjoint(names)


@dataclass(frozen=True)
class Variant:
    """A family of models. Its texts, channels and added say which files are of it.

    channels: of the U-Net's input; added: the tensor that tells of what is added to the time
    embedding, if anything; heads: a width → the attention heads of a level that wide; size: of the
    pictures trained on, pixels; force_zeros_for_empty_prompt: whether no prompt is encoded as
    zeros; enlarges: whether it is an upscaler, whose input is a small picture with noise; guidance:
    the default guidance scale, that of diffusers' pipelines.
    """

    name: str
    title: str
    texts: tuple[TextEncoderSpec, ...]
    heads: Callable[[int], int]
    size: int
    scaling_factor: float
    channels: int = 4
    added: str = ""
    prediction: str = "epsilon"
    beta: tuple[float, float] = (0.00085, 0.012)
    zero_snr: bool = False
    force_zeros_for_empty_prompt: bool = False
    enlarges: bool = False
    guidance: float = 7.5

    @property
    def downsampling_factor(self) -> int:
        """How many pixels, along a side, one of the published latents stands for."""
        return 4 if self.enlarges else 8

    def low_res_process(self) -> VP | None:
        """The process that the dust on the small picture is of, if it sees one."""
        return DISCRETE["scaled-linear"](1000, 1e-4, 0.02) if self.enlarges else None

    def process(self) -> VP:
        """The process that it was trained with."""
        process = DISCRETE["scaled-linear"](1000, *self.beta)
        return zero_terminal_snr(process) if self.zero_snr else process


class Evidence(NamedTuple):
    """What was found in a file, and at which tensor."""

    says: str
    where: str


def _eight(_: int) -> int:
    return 8


def _of_64_channels(width: int) -> int:
    return width // 64


CLIP_L = TextEncoderSpec("text_encoder", "cond_stage_model.transformer.", "clip", "quick_gelu")
# 24 layers, of which the last was not used.
OPEN_CLIP_H = TextEncoderSpec(
    "text_encoder", "cond_stage_model.model.", "open_clip", "gelu", layers=23, padding="!"
)
XL_CLIP_L = replace(CLIP_L, prefix="conditioner.embedders.0.transformer.", penultimate=True)
XL_BIG_G = TextEncoderSpec(
    "text_encoder_2",
    "conditioner.embedders.1.model.",
    "open_clip",
    "gelu",
    penultimate=True,
    pooled=True,
    padding="!",
)
SD1 = Variant("sd1", "Stable Diffusion 1", (CLIP_L,), _eight, 512, 0.18215)
SD2 = Variant("sd2", "Stable Diffusion 2", (OPEN_CLIP_H,), _of_64_channels, 512, 0.18215)
SD2_V = replace(SD2, name="sd2-v", title="Stable Diffusion 2, v", size=768, prediction=V_PREDICTION)
SDXL = Variant(
    "sdxl",
    "Stable Diffusion XL",
    (XL_CLIP_L, XL_BIG_G),
    _of_64_channels,
    1024,
    0.13025,
    added=ADDED[0],
    force_zeros_for_empty_prompt=True,
    guidance=5.0,
)
REFINER = replace(
    SDXL,
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    texts=(replace(XL_BIG_G, prefix="conditioner.embedders.0.model."),),
    force_zeros_for_empty_prompt=False,
)
UPSCALER = replace(
    SD2,
    name="x4-upscaler",
    title="Stable Diffusion x4 upscaler",
    heads=_eight,
    scaling_factor=0.08333,
    channels=7,
    added=ADDED[1],
    prediction=V_PREDICTION,
    beta=(1e-4, 0.02),
    enlarges=True,
    guidance=9.0,
)


def _inpainting(variant: Variant) -> Variant:
    """It also sees the mask and the picture without what is masked."""
    return replace(
        variant,
        name=f"{variant.name}-inpainting",
        title=f"{variant.title} inpainting",
        channels=2 * variant.channels + 1,
    )


VARIANTS = {
    variant.name: variant
    for variant in (
        *(SD1, _inpainting(SD1), SD2, SD2_V, _inpainting(SD2)),
        *(SDXL, _inpainting(SDXL), REFINER, UPSCALER),
    )
}


TEXTS = {text.prefix: text for variant in VARIANTS.values() for text in variant.texts}


def detect(
    shapes: Shapes, tensor: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[Variant, list[Evidence]]:
    """The variant of a file whose tensors have these shapes, and why it is that.

    tensor: gives one of them; metadata: the file's. Raises UndustError, listing what was found, if
    it is of none.
    """
    facts = list(_evidence(shapes))
    fits = [variant for variant in VARIANTS.values() if _fits(variant, shapes)]
    if not fits:
        raise _unknown(shapes, facts)
    variant = fits[0]
    told = PREDICTIONS_TOLD.get((metadata or {}).get(PREDICTION_KEY, ""))
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
    # Beside ε it is left over: noise alone does not tell ε what the picture is.
    if ZERO_SNR_MARK in shapes and variant.prediction == V_PREDICTION:
        variant = replace(variant, zero_snr=True)
        facts.append(Evidence("trained to zero terminal SNR", ZERO_SNR_MARK))
    return variant, facts


def loose_first_stage(shapes: Shapes) -> str | None:
    """The prefix of the first stage in a file that holds nothing else; None if there is none."""
    if any(key.startswith(UNET) for key in shapes):
        return None
    for prefix in LOOSE_FIRST_STAGES:
        if f"{prefix}decoder.mid.block_1.norm1.weight" in shapes:
            return prefix
    return None


def _fits(variant: Variant, shapes: Shapes) -> bool:
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    added = [key for key in ADDED if UNET + key in shapes]
    texts = {prefix for prefix, text in TEXTS.items() if text.there(shapes)}
    return (
        first[1:2] == (variant.channels,)
        and added == list(filter(None, [variant.added]))
        and texts == {text.prefix for text in variant.texts}
    )


def _last_bias(shapes: Shapes) -> str:
    """The first norm's bias in the last transformer of the U-Net."""
    name = f"{UNET}output_blocks.{{}}.1.transformer_blocks.0.norm1.bias"
    found = [key for number in range(len(shapes)) if (key := name.format(number)) in shapes]
    return found[-1] if found else ""


def _evidence(shapes: Shapes) -> Iterator[Evidence]:
    """What a file shows of itself, each with the tensor that shows it."""
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
    for prefix, text in TEXTS.items():
        if text.there(shapes):
            name = prefix + CLIP_NAMES[text.kind]["tokens"]
            called = {"clip": "CLIP", "open_clip": "OpenCLIP"}[text.kind]
            yield _evident(
                f"text encoder of {called}", name if name in shapes else text.short, shapes
            )
    for prefix in LOOSE_FIRST_STAGES:
        if (name := f"{prefix}decoder.conv_in.weight") in shapes:
            yield _evident("first stage", name, shapes)
            return


def _evident(says: str, name: str, shapes: Shapes) -> Evidence:
    return Evidence(says, f"{name} {list(shapes[name])}")


def _unknown(shapes: Shapes, facts: Iterable[Evidence]) -> UndustError:
    """What there is instead of a model."""
    guesses = [
        name
        for pattern, name in STRANGERS.items()
        if any(re.search(pattern, key) for key in shapes)
    ]
    groups = Counter(".".join(key.split(".")[:1]) for key in shapes).most_common(4)
    found = [fact.says for fact in facts] or [
        f"{printable(group)} ({amount} tensors)" for group, amount in groups
    ]
    guess = f"it looks like {guesses[0]}; " if guesses else ""
    return UndustError(
        f"it is no model that is known here: {guess}found {', '.join(found) or 'no tensors'}; "
        f"known are {', '.join(VARIANTS)}"
    )
