"""The networks that a model is made of: the registry of their classes, and the whole of one model.

A new first stage, denoiser or text encoder is its own file and one line in `COMPONENTS`: nothing
else tests for the name of a class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from undust.conditioning.maps import MapKind
from undust.conditioning.text import TextConditioner
from undust.diffusion.process import Process
from undust.errors import UndustError, naming, printable, unknown
from undust.formats import safetensors_file
from undust.formats.files import make_folder, read_whole
from undust.formats.folder import STEMS, load_into, load_weights, read_json, write_json
from undust.formats.networks import empty_network
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import DenoiserNetwork, FirstStageNetwork
from undust.networks.config import (
    AutoencoderConfig,
    ControlNetConfig,
    DenoiserConfig,
    DiTConfig,
    JiTConfig,
    NetworkConfig,
    PixArtConfig,
    SpatioTemporalUNetConfig,
    TemporalAutoencoderConfig,
    TextEncoderConfig,
    TinyConfig,
    UNet2DConfig,
    UNetConfig,
    VQConfig,
)
from undust.networks.controlnet import ControlNet
from undust.networks.dit import DiT, PixArt
from undust.networks.jit import JiT
from undust.networks.stored import computes_in
from undust.networks.text_encoder import TextEncoder
from undust.networks.tiny import TinyAutoencoder
from undust.networks.unet import UNet, UNet2D
from undust.networks.video import SpatioTemporalUNet, TemporalAutoencoder
from undust.networks.vq import VQAutoencoder

DEFAULT_GUIDANCE = 4.0  # of models that are trained here
MAX_NOISE_LEVEL = 350  # of the published upscaler, stable-diffusion-x4-upscaler
CONFIG = "config.json"
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class ComponentType:
    """A class of networks.

    class_name: as model_index.json and config.json have it, of `library`; folder: its name in a
    model folder; network, config: our classes; fixed: fields of the configuration that the class
    name decides, whatever config.json says; about: a line for people in config.json, of a class
    that other libraries do not know.
    """

    class_name: str
    folder: str
    network: type[nn.Module]
    config: type[NetworkConfig]
    library: str = "diffusers"
    fixed: Mapping[str, object] = field(default_factory=dict[str, object])
    about: str = ""

    @property
    def needs_text(self) -> bool:
        """Whether it is a denoiser that cannot do without text."""
        return issubclass(self.config, DenoiserConfig) and self.config.needs_text

    def empty(self, config: NetworkConfig) -> nn.Module:
        """A network without weights, as `empty_network`."""
        return empty_network(cast("Callable[[NetworkConfig], nn.Module]", self.network), config)


def _text_encoder(class_name: str) -> ComponentType:
    fixed = {"architectures": (class_name,)}
    kinds = TextEncoder, TextEncoderConfig
    return ComponentType(class_name, "text_encoder", *kinds, "transformers", fixed)


COMPONENTS = {
    known.class_name: known
    for known in (
        ComponentType("AutoencoderKL", "vae", Autoencoder, AutoencoderConfig),
        ComponentType("VQModel", "vae", VQAutoencoder, VQConfig),
        ComponentType("AutoencoderTiny", "vae", TinyAutoencoder, TinyConfig),
        ComponentType("UNet2DConditionModel", "unet", UNet, UNetConfig),
        ComponentType("UNet2DModel", "unet", UNet2D, UNet2DConfig),
        ComponentType("DiTTransformer2DModel", "transformer", DiT, DiTConfig),
        ComponentType("PixArtTransformer2DModel", "transformer", PixArt, PixArtConfig),
        ComponentType(
            *("JiTTransformer2DModel", "transformer", JiT, JiTConfig, "undust"),
            about="JiT, a transformer over pixels (Li & He 2025, arXiv 2511.13720), for undust",
        ),
        ComponentType(
            *("UNetSpatioTemporalConditionModel", "unet"),
            *(SpatioTemporalUNet, SpatioTemporalUNetConfig),
        ),
        ComponentType(
            *("AutoencoderKLTemporalDecoder", "vae"),
            *(TemporalAutoencoder, TemporalAutoencoderConfig),
        ),
        ComponentType("ControlNetModel", "controlnet", ControlNet, ControlNetConfig),
        _text_encoder("CLIPTextModel"),
        _text_encoder("CLIPTextModelWithProjection"),
    )
}


def types_of(base: type[nn.Module]) -> dict[str, ComponentType]:
    """The registered classes of a kind, such as `FirstStageNetwork`, by their names."""
    return {name: known for name, known in COMPONENTS.items() if issubclass(known.network, base)}


def type_of(network: nn.Module) -> ComponentType:
    """The registered class of a network. Raises UndustError if there is none."""
    types = list(types_of(type(network)).values())
    if not types:
        raise UndustError(f"{type(network).__name__} is not a registered component")
    fields = vars(network.config)
    return next((known for known in types if known.fixed.items() <= fields.items()), types[0])


def new_denoiser(config: DenoiserConfig) -> DenoiserNetwork:
    """A denoiser's network with random weights. Raises UndustError for no registered class."""
    for known in types_of(DenoiserNetwork).values():
        if known.config is type(config):
            return cast("Callable[[DenoiserConfig], DenoiserNetwork]", known.network)(config)
    raise UndustError(f"{type(config).__name__} is of no registered component")


def load_component(
    path: Path,
    base: type[N],
    dtype: torch.dtype | None = torch.float32,
    *,
    class_name: str | None = None,
    **known: object,
) -> N:
    """A network with the weights of its folder, without first filling it with random ones.

    path: the folder, or a file in it; base: `FirstStageNetwork`, `DenoiserNetwork`, `TextEncoder`
    or `ControlNet`; dtype: of the weights, None for that of each in the file; class_name: None for
    the one in config.json; known: fields that are known from elsewhere, whatever config.json says.
    Raises UndustError for a class that is not of this kind, and for a folder that is not whole.
    """
    network = empty_component(path, base, class_name=class_name, **known)
    load_into(network, load_weights(path, dtype), path)
    return network


def empty_component(
    path: Path, base: type[N], *, class_name: str | None = None, **known: object
) -> N:
    """A network without weights, as the config.json of its folder describes it.

    The arguments, and what is refused, are those of `load_component`.
    """
    folder = path.parent if path.is_file() else path
    fields, types = read_json(folder / CONFIG), types_of(base)
    match fields:  # diffusers' name for the class, and transformers'
        case {"_class_name": told} | {"architectures": [told, *_]} if told:
            name = class_name or told
        case _:
            name = class_name or next(iter(types))
    if not isinstance(name, str) or name not in types:
        raise UndustError(f"{path} is a component {printable(name)}, not {' or '.join(types)}")
    kind = types[name]
    with naming(folder / CONFIG):
        return cast(N, kind.empty(kind.config.read({**fields, **kind.fixed, **known})))


def load_first_stage(
    path: Path,
    dtype: torch.dtype | None = torch.float32,
    class_name: str | None = None,
    **known: object,
) -> FirstStageNetwork:
    """A first stage alone, ready for use; as `load_component`, from one writing of its folder.

    path: the folder, or a file of weights with its config.json beside it.
    """
    network = read_whole(
        path.parent if path.is_file() else path,
        lambda: load_component(path, FirstStageNetwork, dtype, class_name=class_name, **known),
    )
    return network.eval().requires_grad_(False)


def save_component(
    folder: Path,
    network: nn.Module,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> None:
    """Writes a network's config.json and weights as its class in diffusers or transformers does.

    The folder is made if need be; `dtype` and `wrote` as `safetensors_file.save`. Raises
    UndustError as that does, and for a network of no registered class.
    """
    kind = type_of(network)
    config = cast(NetworkConfig, network.config).model_dump(mode="json")
    theirs = kind.library == "transformers"
    # transformers' configurations name their class inside. Where no precision is asked for,
    # transformers 5 loads the one that config.json names, else the file's; diffusers loads float32.
    about = {"_about": kind.about} if kind.about else {}
    header = {"torch_dtype": "float32"} if theirs else {"_class_name": kind.class_name, **about}
    make_folder(folder)
    write_json(folder / CONFIG, {**header, **config})
    safetensors_file.save(
        folder / f"{STEMS[theirs]}.safetensors",
        network.state_dict(),
        {"format": "pt"},
        dtype=dtype,
        wrote=wrote,
    )


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampler, schedule (or list of σ) and steps that a distilled model was trained for."""

    sampler: str
    schedule: str
    steps: int


@dataclass(eq=False)
class Components:
    """What goes together as one model.

    texts: the text encoders, whose states are concatenated; process and prediction: those that the
    denoiser's network was trained with; force_zeros_for_empty_prompt: whether no prompt is encoded
    as zeros and not as the empty prompt; low_res_process: the noise process of the low-resolution
    input, None unless the model is an upscaler; max_noise_level: the most of that noise, in time
    steps; guidance: the default guidance scale; classes: the names of class labels; maps: the kinds
    of maps that are concatenated with the latents, behind all other channels; self_conditioned:
    whether the denoiser takes its last estimate, in the channels behind the latents (Chen et al.
    2022, "Analog Bits", section 3.2); schedules: lists of σ that were fitted to it, of different
    numbers of steps; sampling: the steps that it was distilled for, if it was. Raises UndustError
    for components that do not fit one another.
    """

    autoencoder: FirstStageNetwork
    unet: DenoiserNetwork
    texts: tuple[TextConditioner, ...]
    process: Process
    prediction: str
    force_zeros_for_empty_prompt: bool = False
    low_res_process: Process | None = None
    max_noise_level: int = MAX_NOISE_LEVEL
    guidance: float = DEFAULT_GUIDANCE
    classes: tuple[str, ...] = ()
    maps: tuple[MapKind, ...] = ()
    self_conditioned: bool = False
    schedules: tuple[str, ...] = ()
    sampling: SamplingDefaults | None = None

    def __post_init__(self) -> None:
        widths = [each.encoder.config.hidden_size for each in self.texts]
        config, channels = self.unet.config, self.autoencoder.latent_channels
        if config.text_widths - {sum(widths)}:
            raise UndustError(
                "the components do not fit: the text encoders' width is "
                f"{' + '.join(map(str, widths)) or 0} and the denoiser takes text of width "
                f"{' and '.join(map(str, sorted(config.text_widths)))}"
            )
        if config.latent_channels != channels or self.extra_channels not in self._known_extra():
            raise UndustError(
                f"the components do not fit: a denoiser with {config.in_channels} input and "
                f"{config.latent_channels} output channels, for latents of {channels}"
            )
        embeddings = getattr(config, config.label_field) if config.label_field else None
        needed = len(self.classes) + (not config.null_class)
        if self.classes and embeddings != needed:
            raise UndustError(
                f"the components do not fit: {len(self.classes)} classes and a denoiser with "
                f"{config.label_field or 'classes'} = {embeddings}, not {needed}"
            )

    @property
    def extra_channels(self) -> int:
        """Input channels of the denoiser beside those of latent, last estimate and maps."""
        own = self.autoencoder.latent_channels * (1 + self.self_conditioned)
        own += sum(each.channels for each in self.maps)
        return self.unet.config.in_channels - own

    def class_number(self, name: str) -> int:
        """The number of a class by its name, one of its names ("tench, Tinca tinca"), or number.

        Raises UndustError for an unknown one.
        """
        wanted = name.strip().casefold()
        names: dict[str, int] = {}
        for number, own in enumerate(self.classes):
            for each in (own, *own.split(",")):
                names.setdefault(each.strip().casefold(), number)
        if wanted in names:
            return names[wanted]
        if wanted.isdecimal() and int(wanted) < len(self.classes):
            return int(wanted)
        raise unknown("label", name, self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures that the model was trained on, pixels."""
        sample = self.unet.config.sample_size or 64
        factor = self.autoencoder.downsampling_factor
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return width * factor, height * factor

    @property
    def latents(self) -> tuple[float, ...]:
        """Numbers that tell the latents of its first stage from others: channels, factor, scale."""
        return self.autoencoder.latent_space

    @property
    def num_size_ids(self) -> int:
        """How many numbers about the picture's size the denoiser takes beside the pooled text."""
        pooled = self.texts[-1].encoder.config.projection_dim if self.texts else 0
        return self.unet.config.num_size_ids(pooled or 0)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks; text encoders by their names in a model folder."""
        encoders = {each.name: each.encoder for each in self.texts}
        return {"vae": self.autoencoder, "unet": self.unet, **encoders}

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the denoiser computes in."""
        return computes_in(self.unet)

    @property
    def downsampling_factor(self) -> int:
        """Pixels along a side for one latent pixel."""
        return self.autoencoder.downsampling_factor

    def _known_extra(self) -> tuple[int, ...]:
        if self.low_res_process is not None:
            return (self.autoencoder.image_channels,)
        return 0, 1 + self.autoencoder.latent_channels
