"""The published families of models: one entry holds the whole specification of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from undust.diffusion.process import DISCRETE, VP, Process, zero_terminal_snr
from undust.formats.original import infer, keys
from undust.formats.original.key_map import KeyMap
from undust.formats.original.keys import CLIP, OPEN_CLIP, TextLayout
from undust.networks.config import NetworkConfig

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
V_PREDICTION = "v_prediction"
SIZES, CLASSES = "label_emb.0.0.weight", "label_emb.weight"  # added to the time embedding


@dataclass(frozen=True)
class NetworkSpec:
    """A network in a file of the original layout.

    class_name: its class in `formats.components.COMPONENTS`; prefix: of its keys; infer: the shapes
    of the tensors below the prefix → its configuration; keys: our names and the configuration → the
    key map below the prefix; omitted: the beginning of the published names that the file omits.
    """

    class_name: str
    prefix: str
    infer: Callable[..., NetworkConfig]
    keys: Callable[[Collection[str], Any], KeyMap]
    omitted: str = ""


@dataclass(frozen=True)
class TextEncoderSpec:
    """A text encoder, and which of its states the denoiser takes.

    folder: its name in a model folder; layers: how many are used, though the file may have more;
    penultimate: the states before the last of these and without the final norm, not those after
    it; pooled: the end's state, projected, too; padding: the token after the end.
    """

    folder: str
    prefix: str
    layout: TextLayout
    activation: Literal["quick_gelu", "gelu"]
    layers: int | None = None
    penultimate: bool = False
    pooled: bool = False
    padding: str = "<|endoftext|>"

    @property
    def tokens(self) -> str:
        """The key of the tokens' embeddings."""
        return self.prefix + self.layout.tokens

    @property
    def short_tokens(self) -> str:
        """The same key in files that omit `text_model.`."""
        return self.prefix + self.layout.tokens.removeprefix("text_model.")

    def is_in(self, names: Collection[str]) -> bool:
        """Whether it is among a file's tensors."""
        return self.tokens in names or self.short_tokens in names

    def network(self, names: Collection[str] | None = None) -> NetworkSpec:
        """The network in a file of these names, or in one that is to be written."""
        kinds = {
            "layout": self.layout,
            "activation": self.activation,
            "layers": self.layers,
            "projected": self.pooled,
        }
        return NetworkSpec(
            "CLIPTextModelWithProjection" if self.pooled else "CLIPTextModel",
            self.prefix,
            partial(infer.text_encoder, **kinds),
            self.layout.keys,
            "" if names is None or self.tokens in names else "text_model.",
        )


KL_VAE = NetworkSpec("AutoencoderKL", FIRST_STAGE, infer.first_stage, keys.first_stage)
UNET_8_HEADS, UNET_64_WIDE = (
    NetworkSpec("UNet2DConditionModel", UNET, partial(infer.unet, heads=heads), keys.unet)
    for heads in (infer.eight_heads, infer.heads_of_64)
)


SCALED_LINEAR = partial(DISCRETE["scaled-linear"], 1000, 0.00085, 0.012)
OF_UPSCALERS = partial(DISCRETE["scaled-linear"], 1000, 1e-4, 0.02)


@dataclass(frozen=True)
class Variant:
    """A family of models. Its texts, channels and added tell which files are of it.

    network, first_stage, texts: the kinds of its three parts; size: of the pictures trained on,
    pixels; scaling_factor: of the latents; training_process: the noise process, which a file may
    say was brought to zero terminal SNR (zero_snr); low_res_process: that of an upscaler's
    low-resolution input, else None; channels: of the denoiser's input; added: the tensor that tells
    what is added to the time embedding, "" for nothing; downsampling_factor: pixels along a side
    for one latent pixel; force_zeros_for_empty_prompt: whether no prompt is encoded as zeros;
    guidance: the default guidance scale, that of diffusers' pipelines; height: of the pictures
    trained on, pixels, None for squares.
    """

    name: str
    title: str
    network: NetworkSpec
    texts: tuple[TextEncoderSpec, ...]
    size: int
    scaling_factor: float
    first_stage: NetworkSpec = KL_VAE
    training_process: Callable[[], Process] = SCALED_LINEAR
    prediction: str = "epsilon"
    zero_snr: bool = False
    low_res_process: Callable[[], Process | None] = lambda: None
    channels: int = 4
    added: str = ""
    downsampling_factor: int = 8
    force_zeros_for_empty_prompt: bool = False
    guidance: float = 7.5
    height: int | None = None

    def process(self) -> Process:
        """The noise process that it was trained with."""
        process = self.training_process()
        return zero_terminal_snr(process) if self.zero_snr and isinstance(process, VP) else process


CLIP_L = TextEncoderSpec("text_encoder", "cond_stage_model.transformer.", CLIP, "quick_gelu")
# 24 layers, of which the last was not used.
OPEN_CLIP_H = TextEncoderSpec(
    "text_encoder", "cond_stage_model.model.", OPEN_CLIP, "gelu", layers=23, padding="!"
)
XL_CLIP_L = replace(CLIP_L, prefix="conditioner.embedders.0.transformer.", penultimate=True)
XL_BIG_G = TextEncoderSpec(
    "text_encoder_2",
    "conditioner.embedders.1.model.",
    OPEN_CLIP,
    "gelu",
    penultimate=True,
    pooled=True,
    padding="!",
)
SD1 = Variant("sd1", "Stable Diffusion 1", UNET_8_HEADS, (CLIP_L,), 512, 0.18215)
SD2 = Variant("sd2", "Stable Diffusion 2", UNET_64_WIDE, (OPEN_CLIP_H,), 512, 0.18215)
SD2_V = replace(SD2, name="sd2-v", title="Stable Diffusion 2, v", size=768, prediction=V_PREDICTION)
SDXL = Variant(
    "sdxl",
    "Stable Diffusion XL",
    UNET_64_WIDE,
    (XL_CLIP_L, XL_BIG_G),
    1024,
    0.13025,
    added=SIZES,
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
    network=UNET_8_HEADS,
    scaling_factor=0.08333,
    channels=7,
    added=CLASSES,
    prediction=V_PREDICTION,
    training_process=OF_UPSCALERS,
    low_res_process=OF_UPSCALERS,
    downsampling_factor=4,
    guidance=9.0,
)


def _inpainting(variant: Variant) -> Variant:
    """Its denoiser also takes the mask and the masked picture's latents."""
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
