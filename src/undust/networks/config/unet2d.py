"""The configuration of the U-Net without text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from undust.networks.config.base import DenoiserConfig, Length


class UNet2DConfig(DenoiserConfig):
    """The fields of diffusers' UNet2DModel, and its defaults.

    The U-Net of Ho et al. 2020, and with resnet_time_scale_shift "scale_shift" and num_class_embeds
    that of Dhariwal & Nichol 2021 (ADM): self-attention alone, classes added to the time embedding.
    """

    label_field: ClassVar[str] = "num_class_embeds"

    in_channels: Length = Field(3, description="input channels: the latent's and extra ones")
    out_channels: Length = Field(3, description="output channels: the latent's")
    flip_sin_to_cos: bool = Field(
        True, description="cosines before sines in the time step's sinusoids"
    )
    freq_shift: Literal[0, 1] = Field(
        0,
        description="1: the lowest frequency of the sinusoids is exactly 1e-4; 0: slightly higher",
    )
    block_out_channels: tuple[Length, ...] = Field(
        (224, 448, 672, 896),
        min_length=1,
        description="channels of each level, the finest first; each but the first halves the size",
    )
    down_block_types: tuple[Literal["DownBlock2D", "AttnDownBlock2D"], ...] = Field(
        ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        description="block type of each encoder level, the finest first",
    )
    mid_block_type: Literal["UNetMidBlock2D"] | None = Field(
        "UNetMidBlock2D", description="type of the middle block: residual blocks around attention"
    )
    up_block_types: tuple[Literal["UpBlock2D", "AttnUpBlock2D"], ...] = Field(
        ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        description="block type of each decoder level, the coarsest first",
    )
    layers_per_block: Length = Field(
        2, description="residual blocks of an encoder level; a decoder level has one more"
    )
    attention_head_dim: Length | None = Field(
        8, description="channels of an attention head; without it there is one head"
    )
    norm_num_groups: Length = Field(
        32, description="groups of the group normalisation; has to divide all of block_out_channels"
    )
    attn_norm_num_groups: Length | None = Field(
        None,
        description="groups of the middle attention's normalisation; without it norm_num_groups, "
        "or no normalisation with scale_shift",
    )
    norm_eps: float = Field(1e-5, description="ε of the group normalisation")
    resnet_time_scale_shift: Literal["default", "scale_shift"] = Field(
        "default", description="the time embedding is added, or scales and shifts (scale_shift)"
    )
    downsample_padding: Literal[0, 1] = Field(
        1, description="padding of the convolutions that halve the size; 0: right and below only"
    )
    num_class_embeds: Length | None = Field(
        None, description="number of classes; their embeddings are added to the time embedding"
    )

    # Options that are not implemented, restricted to their neutral value.
    act_fn: Literal["silu"] = Field("silu", description="activation; no other is supported")
    center_input_sample: Literal[False] = Field(
        False, description="scaling of the input from [0, 1]; not supported"
    )
    time_embedding_type: Literal["positional"] = Field(
        "positional", description="embedding of the time step: sinusoids; no other is supported"
    )
    time_embedding_dim: None = Field(
        None, description="another width of the time embedding; not supported"
    )
    mid_block_scale_factor: float = Field(
        1.0, ge=1, le=1, description="divisor of the middle's residual sums; no other is supported"
    )
    downsample_type: Literal["conv"] = Field(
        "conv", description="kind of downsampling; no other is supported"
    )
    upsample_type: Literal["conv"] = Field(
        "conv", description="kind of upsampling; no other is supported"
    )
    dropout: float = Field(
        0.0, ge=0, le=0, description="share of activations dropped in training; not supported"
    )
    add_attention: Literal[True] = Field(
        True, description="attention in the middle block; no other is supported"
    )
    class_embed_type: None = Field(None, description="another embedding of classes; not supported")
    num_train_timesteps: None = Field(
        None, description="number of learnt embeddings of time steps; not supported"
    )

    @model_validator(mode="after")
    def _check(self) -> UNet2DConfig:
        widths = self.block_out_channels
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != len(widths):
                raise ValueError(f"{name} needs one entry for each of block_out_channels")
        groups = (self.norm_num_groups, self.attn_norm_num_groups or 1)
        if any(width % groups[0] for width in widths) or widths[-1] % groups[1]:
            raise ValueError(
                "norm_num_groups must divide every entry of block_out_channels, and "
                "attn_norm_num_groups the last"
            )
        kinds = zip(widths, self.down_block_types, self.up_block_types[::-1], strict=True)
        attended = {width for width, *both in kinds if any("Attn" in kind for kind in both)}
        attended |= {widths[-1]} if self.mid_block_type else set()
        for width in sorted(attended):
            if width % (self.attention_head_dim or width):
                raise ValueError(f"attention_head_dim, of one head, must divide {width}")
        return self

    @property
    def side_multiple(self) -> int:
        """The sides are halved between levels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def mid_attention(self) -> bool:
        """Whether there is attention in the middle block."""
        return self.mid_block_type is not None

    def at(self, field: Literal["layers_per_block"], level: int) -> int:  # noqa: ARG002
        """The value of a field at a level, the same at all."""
        return getattr(self, field)

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:  # noqa: ARG002
        """One attention behind each residual block of a level."""
        return (1,) * (self.layers_per_block + up)

    @property
    def mid_norm_groups(self) -> int:
        """Groups of the middle attention's normalisation; 0 without one."""
        own = self.norm_num_groups if self.resnet_time_scale_shift == "default" else 0
        return self.attn_norm_num_groups or own
