"""The configurations of the first stages with an encoder and a decoder: KL and VQ."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from undust.networks.config.base import (
    Length,
    NetworkConfig,
)


class EncoderDecoderConfig(NetworkConfig):
    """The fields that AutoencoderKL and VQModel share, and their defaults."""

    in_channels: Length = Field(3, description="channels of the pictures encoded")
    out_channels: Length = Field(3, description="channels of the pictures decoded")
    block_out_channels: tuple[Length, ...] = Field(
        (64,),
        min_length=1,
        description="channels of each level, the finest first; each but the first halves the size",
    )
    down_block_types: tuple[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ...] = Field(
        default_factory=lambda data: ("DownEncoderBlock2D",) * len(data["block_out_channels"]),
        description="kind of each level of the encoder, the finest first; Attn: with attention",
    )
    up_block_types: tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...] = Field(
        default_factory=lambda data: ("UpDecoderBlock2D",) * len(data["block_out_channels"]),
        description="kind of each level of the decoder, the coarsest first; Attn: with attention",
    )
    layers_per_block: Length = Field(
        1, description="residual blocks of a level of the encoder; the decoder has one more"
    )
    act_fn: Literal["silu"] = Field("silu", description="activation; no other is supported")
    latent_channels: Length = Field(4, description="channels of the latent")
    norm_num_groups: Length = Field(
        32, description="groups of the group normalisation; has to divide all of block_out_channels"
    )
    sample_size: Annotated[int | tuple[int, ...], BeforeValidator(lambda size: size or 32)] = Field(
        32,
        description="training size of the pictures, pixels; set to data.size in training",
    )
    scaling_factor: float = Field(
        0.18215,
        gt=0,
        description="factor of the latents for the U-Net; 1 for a first stage trained here",
    )
    force_upcast: bool = Field(
        True,
        description="decode in float32, for other programs; undust decides by the result",
    )
    mid_block_add_attention: bool = Field(True, description="self-attention at the coarsest level")

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} needs one entry for each of the {levels} block_out_channels"
                )
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("norm_num_groups must divide every entry of block_out_channels")
        return self


class AutoencoderConfig(EncoderDecoderConfig):
    """The fields of diffusers' AutoencoderKL, and its defaults."""

    shift_factor: float | None = Field(None, description="subtracted from latents before scaling")
    # Per channel, instead of shift_factor and in addition to scaling_factor (Playground v2.5).
    latents_mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel of the latent, subtracted before scaling"
    )
    latents_std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        description="standard deviation of each channel of the latent, divided by before scaling",
    )
    use_quant_conv: bool = Field(True, description="a 1×1 convolution after the encoder")
    use_post_quant_conv: bool = Field(True, description="a 1×1 convolution before the decoder")

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        statistics = self.latents_mean, self.latents_std
        if statistics != (None, None) and {len(each or ()) for each in statistics} != {
            self.latent_channels
        }:
            raise ValueError(
                "latents_mean and latents_std need one entry for each of the latent_channels"
            )
        return self


class VQConfig(EncoderDecoderConfig):
    """The fields of diffusers' VQModel, and its defaults."""

    latent_channels: Length = Field(3, description="channels between encoder and codebook")
    num_vq_embeddings: Length = Field(256, description="codes in the codebook")
    vq_embed_dim: Length | None = Field(
        None, description="channels of a code and of the latent; left out: latent_channels"
    )
    norm_type: Literal["group"] = Field(
        "group", description="normalisation of the decoder; no other is supported"
    )
    lookup_from_codebook: Literal[False] = Field(
        False, description="decoding from indices; not supported"
    )
    force_upcast: bool = Field(
        False,
        description="decode in float32, for other programs; undust decides by the result",
    )

    @property
    def code_width(self) -> int:
        """Channels of a code and of the latent."""
        return self.vq_embed_dim or self.latent_channels
