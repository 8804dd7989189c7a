"""The configurations of the U-Net and of ControlNets."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal, Self, cast, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from undust.networks.config.base import (
    DenoiserConfig,
    Depths,
    Length,
    LengthOr0,
    PerLevel,
    PerLevelField,
)


class UNetConfig(DenoiserConfig):
    """The fields of diffusers' UNet2DConditionModel, and its defaults.

    attention_head_dim: in every published file the number of heads, not their size;
    transformer_layers_per_block: for each level, or for each layer of each level, in which case
    reverse_transformer_layers_per_block has the decoder's, the coarsest level first.
    """

    text_field: ClassVar[str] = "cross_attention_dim"
    needs_text: ClassVar[bool] = True
    label_field: ClassVar[str] = "num_class_embeds"
    # Keys that diffusers writes for weights that are a moving average.
    housekeeping = frozenset(
        {
            *("decay", "inv_gamma", "min_decay", "optimization_step", "power"),
            *("update_after_step", "use_ema_warmup"),
        }
    )

    flip_sin_to_cos: bool = Field(
        True, description="cosines before sines in the time step's sinusoids"
    )
    freq_shift: Literal[0, 1] = Field(
        0,
        description="1: the lowest frequency of the sinusoids is exactly 1e-4; 0: slightly higher",
    )
    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = Field(
        (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        description="block type of each encoder level, the finest first",
    )
    # Two residual blocks around a transformer, or one alone, or nothing.
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = Field(
        "UNetMidBlock2DCrossAttn",
        description="type of the middle block: residual blocks around attention, or one alone",
    )
    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...] = Field(
        (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
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
    norm_num_groups: Length = Field(
        32, description="groups of the group normalisation; has to divide all of block_out_channels"
    )
    norm_eps: float = Field(1e-5, description="ε of the group normalisation")
    cross_attention_dim: PerLevel = Field(
        1280, description="channels of text tokens; one number, or one for each level"
    )
    # With 0 a transformer has only its projections, as in SDXL's smaller ControlNets.
    transformer_layers_per_block: LengthOr0 | Depths = Field(
        1, description="transformer blocks after a residual block; one number, or by level"
    )
    reverse_transformer_layers_per_block: Depths | None = Field(
        None, description="the same for the decoder, the coarsest level first"
    )
    attention_head_dim: PerLevel = Field(
        8,
        description="number of attention heads, in spite of its name; or one number for each level",
    )
    use_linear_projection: bool = Field(
        False,
        description="linear layers in place of 1×1 convolutions on both sides of the transformers",
    )
    resnet_time_scale_shift: Literal["default", "scale_shift"] = Field(
        "default", description="the time embedding is added, or scales and shifts (scale_shift)"
    )
    # Added to the time embedding: the text as one vector (Imagen), or pooled text and sinusoids of
    # size ids (SDXL), of `addition_time_embed_dim` channels each.
    addition_embed_type: Literal["text", "text_time"] | None = Field(
        None,
        description="added to the time embedding: pooled text, or pooled text and size ids (SDXL)",
    )
    addition_embed_type_num_heads: Length = Field(
        64, description="attention heads of the text's pooling"
    )
    addition_time_embed_dim: Length | None = Field(
        None, description="channels of the sinusoids of each size id, for text_time"
    )
    projection_class_embeddings_input_dim: Length | None = Field(
        None, description="channels of pooled text and all size ids, for text_time"
    )
    num_class_embeds: Length | None = Field(
        None, description="number of classes; their embeddings are added to the time embedding"
    )
    only_cross_attention: Literal[False] | tuple[bool, ...] = Field(
        False, description="levels with cross-attention in place of self-attention"
    )
    upcast_attention: bool | None = Field(
        False,
        description="attention in float32, for other programs; undust always sums in float32",
    )

    # Options that are not implemented, restricted to their neutral value.
    act_fn: Literal["silu"] = Field("silu", description="activation; no other is supported")
    center_input_sample: Literal[False] = Field(
        False, description="scaling of the input from [0, 1]; not supported"
    )
    downsample_padding: Literal[1] = Field(
        1, description="padding of the convolutions that halve the size; no other is supported"
    )
    mid_block_scale_factor: float = Field(
        1.0, ge=1, le=1, description="divisor of the middle's residual sums; no other is supported"
    )
    dropout: float = Field(
        0.0, ge=0, le=0, description="share of activations dropped in training; not supported"
    )
    encoder_hid_dim: None = Field(
        None, description="channels before a projection of the text; not supported"
    )
    encoder_hid_dim_type: None = Field(
        None, description="kind of a projection of the text; not supported"
    )
    num_attention_heads: None = Field(
        None, description="not supported; attention_head_dim is the number of heads"
    )
    dual_cross_attention: Literal[False] = Field(
        False, description="two cross-attentions in a block; not supported"
    )
    class_embed_type: None = Field(None, description="another embedding of classes; not supported")
    resnet_skip_time_act: Literal[False] = Field(
        False,
        description="residual blocks without an activation of the time embedding; not supported",
    )
    resnet_out_scale_factor: float = Field(
        1.0, ge=1, le=1, description="divisor of the residual sums; no other is supported"
    )
    time_embedding_type: Literal["positional"] = Field(
        "positional", description="embedding of the time step: sinusoids; no other is supported"
    )
    time_embedding_dim: None = Field(
        None, description="another width of the time embedding; not supported"
    )
    time_embedding_act_fn: None = Field(
        None, description="an activation behind the time embedding; not supported"
    )
    timestep_post_act: None = Field(
        None, description="an activation in the time embedding; not supported"
    )
    time_cond_proj_dim: None = Field(
        None, description="channels of a condition in the time embedding; not supported"
    )
    conv_in_kernel: Literal[3] = Field(
        3, description="size of the first convolution; no other is supported"
    )
    conv_out_kernel: Literal[3] = Field(
        3, description="size of the last convolution; no other is supported"
    )
    attention_type: Literal["default"] = Field(
        "default", description="kind of attention block; no other is supported"
    )
    class_embeddings_concat: Literal[False] = Field(
        False, description="classes beside the time embedding, not added; not supported"
    )
    mid_block_only_cross_attention: Literal[False] | None = Field(
        None, description="cross-attention alone in the middle; not supported"
    )
    cross_attention_norm: None = Field(
        None, description="normalisation of the text in cross-attention; not supported"
    )

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        widths = self.block_out_channels
        depths = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
        lists = ("down_block_types", "up_block_types", "only_cross_attention", *depths)
        for name in (*lists, *get_args(PerLevelField)):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(cast("tuple[object]", value)) != len(widths):
                raise ValueError(f"{name} needs one entry for each of block_out_channels")
        if any(width % self.norm_num_groups for width in widths):
            raise ValueError("norm_num_groups must divide every entry of block_out_channels")
        for level, up in itertools.product(range(len(widths)), (False, True)):
            if len(self.depths(level, up=up)) != self.at("layers_per_block", level) + up:
                raise ValueError(
                    f"{depths[up]} needs one entry for each of layers_per_block{' + 1' * up}"
                )
        if self.addition_embed_type == "text":
            width, heads = self.cross_attention_dim, self.addition_embed_type_num_heads
            if not isinstance(width, int) or width % heads:
                raise ValueError(
                    "addition_embed_type = 'text' needs one cross_attention_dim that "
                    "addition_embed_type_num_heads divides"
                )
        if self.addition_embed_type == "text_time":
            each, whole = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
            if each is None or whole is None or whole <= each:
                raise ValueError(
                    "addition_embed_type = 'text_time' needs addition_time_embed_dim and a larger "
                    "projection_class_embeddings_input_dim"
                )
        for i, kinds in enumerate(
            zip(self.down_block_types, self.up_block_types[::-1], strict=True)
        ):
            crossed = any(kind.startswith("CrossAttn") for kind in kinds)
            crossed = crossed or (self.mid_block_type is not None and i == len(widths) - 1)
            if crossed and widths[i] % self.at("attention_head_dim", i):
                raise ValueError(
                    f"attention_head_dim, the number of heads, must divide {widths[i]}"
                )
        return self

    @property
    def side_multiple(self) -> int:
        """The sides are halved between levels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def text_widths(self) -> frozenset[int]:
        """The widths of the text's tokens: in nearly all U-Nets the same at every level."""
        widths = self.cross_attention_dim
        return frozenset({widths} if isinstance(widths, int) else widths)

    @property
    def takes_pooled_text(self) -> bool:
        """Whether the pooled text and sizes are added to the time embedding, as in SDXL."""
        return self.addition_embed_type == "text_time"

    @property
    def mid_attention(self) -> bool:
        """Whether there is attention in the middle block."""
        return self.mid_block_type == "UNetMidBlock2DCrossAttn"

    def num_size_ids(self, pooled_width: int) -> int:
        """The number of size ids in the vector that is added to the time embedding."""
        each, whole = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
        if not self.takes_pooled_text or each is None or whole is None:
            return 0
        return (whole - pooled_width) // each

    def at(self, field: PerLevelField, level: int) -> int:
        """The value of a field at a level (0 is the finest)."""
        value: PerLevel = getattr(self, field)
        return value if isinstance(value, int) else value[level]

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:
        """The depth of each transformer of a level, in the encoder or (up) the decoder."""
        given = self.transformer_layers_per_block
        if up and self.reverse_transformer_layers_per_block is not None:
            given = self.reverse_transformer_layers_per_block[::-1]
        own = given if isinstance(given, int) else given[level]
        layers = self.at("layers_per_block", level) + up
        return (own,) * layers if isinstance(own, int) else own

    def crosses_only(self, level: int) -> bool:
        """Whether the transformers of a level have cross-attention in place of self-attention."""
        return bool(self.only_cross_attention) and self.only_cross_attention[level]


class ControlNetConfig(UNetConfig):
    """The fields of diffusers' ControlNetModel: those of the U-Net's encoder, and its own.

    conditioning_embedding_out_channels: each but the first halves the hint once more;
    global_pool_conditions: the output is its mean over all pixels ("shuffle").
    """

    # Fields of the U-Net that ControlNetModel's configuration does not have.
    unets: ClassVar[frozenset[str]] = frozenset(
        {
            *("sample_size", "out_channels", "up_block_types", "center_input_sample", "dropout"),
            *("reverse_transformer_layers_per_block", "dual_cross_attention", "attention_type"),
            *("resnet_skip_time_act", "resnet_out_scale_factor", "time_embedding_type"),
            *("time_embedding_dim", "time_embedding_act_fn", "timestep_post_act"),
            *("time_cond_proj_dim", "conv_in_kernel", "conv_out_kernel"),
            *("class_embeddings_concat", "mid_block_only_cross_attention", "cross_attention_norm"),
        }
    )

    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...] = Field(
        default_factory=lambda data: tuple(
            kind.replace("Down", "Up") for kind in data["down_block_types"][::-1]
        )
    )
    conditioning_channels: Literal[3] = Field(3, description="channels of the hint")
    conditioning_embedding_out_channels: tuple[Length, ...] = Field(
        (16, 32, 96, 256),
        min_length=1,
        description="channels of the hint's convolutions; each but the first halves its size",
    )
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = Field(
        "rgb", description="order of the hint's colour channels"
    )
    global_pool_conditions: bool = Field(
        False, description="the output is averaged over all pixels (shuffle)"
    )

    @model_serializer(mode="wrap")
    def _published(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in self.unets}

    @classmethod
    def of(cls, unet: UNetConfig) -> Self:
        """The configuration of a ControlNet for a U-Net."""
        return cls.model_validate(unet.model_dump(exclude=set(cls.unets)))
