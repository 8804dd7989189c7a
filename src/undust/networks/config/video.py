"""The configurations of Stable Video Diffusion's networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, cast, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from undust.networks.config.autoencoder import EncoderDecoderConfig
from undust.networks.config.base import DenoiserConfig, Length, PerLevel

DOWN = Literal["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"]
UP = Literal["CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"]
VideoField = Literal[
    "layers_per_block",
    "cross_attention_dim",
    "num_attention_heads",
    "transformer_layers_per_block",
]


class SpatioTemporalUNetConfig(DenoiserConfig):
    """The fields of diffusers' UNetSpatioTemporalConditionModel, and its defaults.

    Its normalisations have 32 groups and ε = 1e-5, as in the original implementation; diffusers
    writes neither to its files.
    """

    norm_num_groups: ClassVar[int] = 32
    norm_eps: ClassVar[float] = 1e-5
    downsample_padding: ClassVar[int] = 1
    mid_attention: ClassVar[bool] = True
    mid_block_type: ClassVar[str] = "UNetMidBlockSpatioTemporal"
    num_class_embeds: ClassVar[None] = None
    flip_sin_to_cos: ClassVar[bool] = True
    freq_shift: ClassVar[int] = 0

    in_channels: Length = Field(8, description="input channels: the latent's and the picture's")
    out_channels: Length = Field(4, description="output channels: the latent's")
    down_block_types: tuple[DOWN, ...] = Field(
        (*(get_args(DOWN)[0],) * 3, get_args(DOWN)[1]),
        description="block type of each encoder level, the finest first",
    )
    up_block_types: tuple[UP, ...] = Field(
        (get_args(UP)[1], *(get_args(UP)[0],) * 3),
        description="block type of each decoder level, the coarsest first",
    )
    block_out_channels: tuple[Length, ...] = Field(
        (320, 640, 1280, 1280),
        min_length=1,
        description="channels of each level, the finest first; each but the first halves the size",
    )
    layers_per_block: PerLevel = Field(
        2, description="residual blocks of an encoder level; a decoder level has one more"
    )
    cross_attention_dim: PerLevel = Field(
        1024, description="channels of the picture's embedding; one number, or one for each level"
    )
    transformer_layers_per_block: PerLevel = Field(
        1, description="transformer blocks after a residual block; one number, or by level"
    )
    num_attention_heads: PerLevel = Field(
        (5, 10, 10, 20), description="attention heads; one number, or one for each level"
    )
    addition_time_embed_dim: Length = Field(
        256, description="channels of the sinusoids of frame rate, motion and noise"
    )
    projection_class_embeddings_input_dim: Length = Field(
        768, description="channels of the sinusoids of all of these numbers"
    )
    num_frames: Length = Field(25, description="frames of a film in training")

    @model_validator(mode="after")
    def _check(self) -> Self:
        widths = self.block_out_channels
        for name in ("down_block_types", "up_block_types", *get_args(VideoField)):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(widths):  # pyright: ignore[reportUnknownArgumentType]
                raise ValueError(f"{name} needs one entry for each of block_out_channels")
        if any(width % self.norm_num_groups for width in widths):
            raise ValueError(f"{self.norm_num_groups} must divide all of block_out_channels")
        for level, width in enumerate(widths):
            if width % self.at("num_attention_heads", level):
                raise ValueError(f"num_attention_heads must divide {width}")
        if self.projection_class_embeddings_input_dim % self.addition_time_embed_dim:
            raise ValueError(
                "addition_time_embed_dim must divide projection_class_embeddings_input_dim"
            )
        return self

    @property
    def side_multiple(self) -> int:
        """The sides are halved between levels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def text_widths(self) -> frozenset[int]:
        """The widths of the picture's embedding."""
        widths = self.cross_attention_dim
        return frozenset({widths} if isinstance(widths, int) else widths)

    @property
    def num_numbers(self) -> int:
        """How many numbers the network takes beside the picture: frame rate, motion, noise."""
        return self.projection_class_embeddings_input_dim // self.addition_time_embed_dim

    def at(self, field: VideoField, level: int) -> int:
        """The value of a field at a level (0 is the finest)."""
        value: PerLevel = getattr(self, field)
        return value if isinstance(value, int) else value[level]

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:
        """The depth of each transformer of a level, in the encoder or (up) the decoder."""
        layers = self.at("layers_per_block", level) + up
        return (self.at("transformer_layers_per_block", level),) * layers


class TemporalAutoencoderConfig(EncoderDecoderConfig):
    """The fields of diffusers' AutoencoderKLTemporalDecoder, and its defaults.

    Other fields of first stages are not in its files and have their defaults.
    """

    absent: ClassVar[tuple[str, ...]] = (
        *("norm_num_groups", "act_fn", "mid_block_add_attention", "up_block_types"),
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_absent(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and (given := [*cast("Any", fields).keys() & cls.absent]):
            raise ValueError(f"{min(given)} is not a field of AutoencoderKLTemporalDecoder")
        return cast("Any", fields)

    @model_serializer(mode="wrap")
    def _published(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in self.absent}
