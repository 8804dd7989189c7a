"""The parts of a latent diffusion model, as files hold them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from undust.conditioning.text import TextConditioner
from undust.diffusion.process import Process
from undust.errors import UndustError
from undust.networks.autoencoder import Autoencoder
from undust.networks.unet import UNet

GUIDANCE = 4.0  # of models that are trained here
MAX_NOISE_LEVEL = 350  # of the published upscaler, stable-diffusion-x4-upscaler


@dataclass(eq=False)
class Components:
    """What goes together as one model.

    texts: the text encoders, whose states stand side by side; process and prediction: what the
    U-Net was trained for; force_zeros_for_empty_prompt: whether no prompt is encoded as zeros and
    not as the empty prompt; low_res_process: the noise process of the low-resolution input, None
    unless the model is an upscaler; max_noise_level: the most of that noise, in time steps;
    guidance: the default guidance scale. Raises UndustError for parts that do not fit one another.
    """

    autoencoder: Autoencoder
    unet: UNet
    texts: tuple[TextConditioner, ...]
    process: Process
    prediction: str
    force_zeros_for_empty_prompt: bool = False
    low_res_process: Process | None = None
    max_noise_level: int = MAX_NOISE_LEVEL
    guidance: float = GUIDANCE

    def __post_init__(self) -> None:
        widths = [words.encoder.config.hidden_size for words in self.texts]
        wanted = self.unet.config.cross_attention_dim
        if wanted not in (sum(widths), (sum(widths),) * len(self.unet.config.block_out_channels)):
            named = " + ".join(map(str, widths))
            raise UndustError(
                f"the parts do not fit: the text encoder's hidden_size is {named} and the U-Net's "
                f"cross_attention_dim is {wanted}"
            )
        channels = self.autoencoder.config.latent_channels
        if (
            self.unet.config.out_channels != channels
            or self.extra_channels not in self._known_extra_channels()
        ):
            raise UndustError(
                f"the parts do not fit: a U-Net of {self.unet.config.in_channels} channels in and "
                f"{self.unet.config.out_channels} out, for latents of {channels}"
            )

    @property
    def extra_channels(self) -> int:
        """How many channels the U-Net sees beside the latent's."""
        return self.unet.config.in_channels - self.autoencoder.config.latent_channels

    @property
    def latents(self) -> tuple[float, ...]:
        """What tells the latents of its first stage from others: channels, factor, scale, shift."""
        config = self.autoencoder.config
        each = *(config.latents_mean or ()), *(config.latents_std or ())
        shift = config.shift_factor or 0.0
        return config.latent_channels, self.downsampling_factor, config.scaling_factor, shift, *each

    @property
    def num_size_ids(self) -> int:
        """How many numbers about the picture's size the U-Net is told beside the pooled text."""
        config = self.unet.config
        each, whole = config.addition_time_embed_dim, config.projection_class_embeddings_input_dim
        if config.addition_embed_type != "text_time" or each is None or whole is None:
            return 0
        pooled = self.texts[-1].encoder.config.projection_dim or 0
        return (whole - pooled) // each

    @property
    def text_names(self) -> tuple[str, ...]:
        """The names of the text encoders in a model folder."""
        return tuple(words.name for words in self.texts)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names that they have in a model folder."""
        encoders = (words.encoder for words in self.texts)
        texts = dict(zip(self.text_names, encoders, strict=True))
        return {"vae": self.autoencoder, "unet": self.unet, **texts}

    @property
    def downsampling_factor(self) -> int:
        """How many pixels, along a side, one of the latent stands for."""
        return self.autoencoder.downsampling_factor

    def _known_extra_channels(self) -> tuple[int, ...]:
        if self.low_res_process is not None:
            return (self.autoencoder.config.in_channels,)
        return 0, 1 + self.autoencoder.config.latent_channels
