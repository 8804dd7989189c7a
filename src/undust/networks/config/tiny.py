"""The configuration of the tiny first stage."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from undust.networks.config.base import Length, LengthOr0, NetworkConfig


class TinyConfig(NetworkConfig):
    """The fields of diffusers' AutoencoderTiny, and its defaults."""

    housekeeping: ClassVar[frozenset[str]] = frozenset({"block_out_channels"})

    in_channels: Length = Field(3, description="channels of the pictures encoded")
    out_channels: Length = Field(3, description="channels of the pictures decoded")
    encoder_block_out_channels: tuple[Length, ...] = Field(
        (64, 64, 64, 64), min_length=1, description="channels of each level; all have to be equal"
    )
    decoder_block_out_channels: tuple[Length, ...] = Field(
        (64, 64, 64, 64), min_length=1, description="channels of each level; all have to be equal"
    )
    act_fn: Literal["relu"] = Field("relu", description="activation; no other is supported")
    upsample_fn: Literal["nearest"] = Field("nearest", description="upsampling; there is one")
    latent_channels: Length = Field(
        4, description="channels of the latent; set to the teacher's in training"
    )
    upsampling_scaling_factor: Literal[2] = Field(2, description="upsampling of a level")
    num_encoder_blocks: tuple[LengthOr0, ...] = Field(
        (1, 3, 3, 3), description="residual blocks of each level, the finest first"
    )
    num_decoder_blocks: tuple[LengthOr0, ...] = Field(
        (3, 3, 3, 1), description="residual blocks of each level, the coarsest first"
    )
    latent_magnitude: float = Field(3, description="range of latents stored as bytes elsewhere")
    latent_shift: float = Field(0.5, description="zero of latents stored as bytes elsewhere")
    force_upcast: bool = Field(False, description="for other programs")
    scaling_factor: float = Field(1.0, gt=0, description="factor of the latents for the U-Net")
    shift_factor: float = Field(0.0, description="subtracted from latents before scaling")
    # Not a field of diffusers, which ignores it with a warning.
    sample_size: Length = Field(
        512, description="training size of the pictures, pixels; set to data.size in training"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for half in ("encoder", "decoder"):
            widths, blocks = f"{half}_block_out_channels", f"num_{half}_blocks"
            if len(getattr(self, widths)) != len(getattr(self, blocks)):
                raise ValueError(f"{widths} and {blocks} need one entry for each level")
            if len(set(getattr(self, widths))) > 1:
                raise ValueError(f"the entries of {widths} have to be equal")
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ValueError("num_encoder_blocks and num_decoder_blocks need as many levels")
        return self
