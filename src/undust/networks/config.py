"""The networks' configurations: the published field names and defaults, checked one by one.

No torch here: a recipe or a model folder can be read and refused before anything heavy starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from undust.errors import UndustError, demand, few, quoted, shown

LARGEST = 2**20  # of any length: what a damaged file claims is not built
FIRST = 4  # faults of a configuration are named
Length = Annotated[int, Field(gt=0, le=LARGEST)]
LengthOr0 = Annotated[int, Field(ge=0, le=LARGEST)]
Token = Annotated[int, Field(ge=-1, le=LARGEST)]
PerLevel = Length | tuple[Length, ...]
PerLevelField = Literal["layers_per_block", "cross_attention_dim", "attention_head_dim"]
Depths = tuple[LengthOr0 | tuple[LengthOr0, ...], ...]


class NetworkConfig(BaseModel):
    """A frozen `config.json`: an unknown field, or a value not built here, is refused by name.

    Options that exist elsewhere but not here are typed so that only their neutral value passes;
    a model that needs one of them is then turned away instead of being computed wrongly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    housekeeping: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_housekeeping(cls, fields: Any) -> Any:
        """Keys such as `_class_name` describe the file, not the network."""
        if not isinstance(fields, Mapping):
            return fields
        known = cast("Mapping[str, Any]", fields)
        few(cls.__name__, known)
        for name, value in known.items():
            if isinstance(value, list):
                few(f"{cls.__name__}: {shown(name)}", cast("list[Any]", value))
        return {
            key: value
            for key, value in known.items()
            if not key.startswith("_") and key not in cls.housekeeping
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration in a parsed `config.json`; UndustError names each field at fault."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            faults: dict[str, str] = {}
            for details in error.errors():
                # One complaint a field: a union complains for each of its members.
                faults.setdefault(str(details["loc"][:1]), _fault(details))
            told = list(filter(None, faults.values()))
            more = f" and {len(told) - FIRST} more" if len(told) > FIRST else ""
            summary = "; ".join(told[:FIRST]) + more
            raise UndustError(f"unsupported {cls.__name__}: {summary}") from None


def _fault(details: ErrorDetails) -> str:
    if details["type"] == "default_factory_not_called":
        return ""  # only ever the consequence of another fault
    if details["type"] == "value_error":
        return demand(details)
    field = shown(details["loc"][0]) if details["loc"] else "the name of a field"
    return f"{field} = {quoted(details['input'])}: {demand(details)}"


class AutoencoderConfig(NetworkConfig):
    """The fields of diffusers' AutoencoderKL, and its defaults."""

    in_channels: Length = 3
    out_channels: Length = 3
    block_out_channels: tuple[Length, ...] = Field((64,), min_length=1)
    # There is one kind of level; a configuration may leave out saying so for each.
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = Field(
        default_factory=lambda data: ("DownEncoderBlock2D",) * len(data["block_out_channels"])
    )
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = Field(
        default_factory=lambda data: ("UpDecoderBlock2D",) * len(data["block_out_channels"])
    )
    layers_per_block: Length = 1
    act_fn: Literal["silu"] = "silu"
    latent_channels: Length = 4
    norm_num_groups: Length = 32
    sample_size: Annotated[int | tuple[int, ...], BeforeValidator(lambda size: size or 32)] = 32
    scaling_factor: float = Field(0.18215, gt=0)
    shift_factor: float | None = None
    # Each channel's own, in the place of the shift and beside the scale, as in Playground v2.5.
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _check(self) -> AutoencoderConfig:
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} needs one entry for each of the {levels} block_out_channels"
                )
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("norm_num_groups must divide every entry of block_out_channels")
        told = self.latents_mean, self.latents_std
        if told != (None, None) and {len(each or ()) for each in told} != {self.latent_channels}:
            raise ValueError(
                "latents_mean and latents_std need one entry for each of the latent_channels"
            )
        return self


class UNetConfig(NetworkConfig):
    """The fields of diffusers' UNet2DConditionModel, and its defaults.

    `attention_head_dim` is, in every published file, the number of heads and not their size.
    `transformer_layers_per_block` is of a level or of each of its layers; then the levels of the
    way up have theirs in `reverse_transformer_layers_per_block`, the coarsest first.
    """

    # What diffusers leaves beside them where the weights are a moving average.
    housekeeping = frozenset(
        {
            *("decay", "inv_gamma", "min_decay", "optimization_step", "power"),
            *("update_after_step", "use_ema_warmup"),
        }
    )

    sample_size: int | tuple[int, int] | None = None
    in_channels: Length = 4
    out_channels: Length = 4
    flip_sin_to_cos: bool = True
    freq_shift: Literal[0, 1] = 0
    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    # Two residual blocks about a transformer, or one alone, or nothing.
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = (
        "UNetMidBlock2DCrossAttn"
    )
    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    block_out_channels: tuple[Length, ...] = Field((320, 640, 1280, 1280), min_length=1)
    layers_per_block: PerLevel = 2
    norm_num_groups: Length = 32
    norm_eps: float = 1e-5
    cross_attention_dim: PerLevel = 1280
    # 0 leaves nothing between a transformer's projections, as in SDXL's smaller ControlNets.
    transformer_layers_per_block: LengthOr0 | Depths = 1
    reverse_transformer_layers_per_block: Depths | None = None
    attention_head_dim: PerLevel = 8
    use_linear_projection: bool = False
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    # What is added to the time embedding: all words as one vector (Imagen), or a vector of the text
    # and sinusoids of sizes (SDXL), of `addition_time_embed_dim` channels for each number.
    addition_embed_type: Literal["text", "text_time"] | None = None
    addition_embed_type_num_heads: Length = 64
    addition_time_embed_dim: Length | None = None
    projection_class_embeddings_input_dim: Length | None = None
    # A table of vectors that are added to it: one for each class.
    num_class_embeds: Length | None = None
    # Levels whose transformers see the text alone, in the place of their own pixels too.
    only_cross_attention: Literal[False] | tuple[bool, ...] = False
    # The fused attention already sums in float32, which is all that this one asks for.
    upcast_attention: bool | None = False

    # Options of other models, here with the one value that leaves this network as it is.
    act_fn: Literal["silu"] = "silu"
    center_input_sample: Literal[False] = False
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: float = Field(1.0, ge=1, le=1)
    dropout: float = Field(0.0, ge=0, le=0)
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    num_attention_heads: None = None
    dual_cross_attention: Literal[False] = False
    class_embed_type: None = None
    resnet_skip_time_act: Literal[False] = False
    resnet_out_scale_factor: float = Field(1.0, ge=1, le=1)
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    attention_type: Literal["default"] = "default"
    class_embeddings_concat: Literal[False] = False
    mid_block_only_cross_attention: Literal[False] | None = None
    cross_attention_norm: None = None

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

    def at(self, field: PerLevelField, level: int) -> int:
        """The value of a field, given once or for each level, at a level (0 is the finest)."""
        value: PerLevel = getattr(self, field)
        return value if isinstance(value, int) else value[level]

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:
        """How deep the transformers of a level are, one after another, on the way down or up."""
        given = self.transformer_layers_per_block
        if up and self.reverse_transformer_layers_per_block is not None:
            given = self.reverse_transformer_layers_per_block[::-1]
        own = given if isinstance(given, int) else given[level]
        layers = self.at("layers_per_block", level) + up
        return (own,) * layers if isinstance(own, int) else own

    def crosses_only(self, level: int) -> bool:
        """Whether the transformers of a level see the text in the place of their own pixels."""
        return bool(self.only_cross_attention) and self.only_cross_attention[level]


class TextEncoderConfig(NetworkConfig):
    """The fields of transformers' CLIPTextConfig, and its defaults.

    `architectures` says whether the end's state is projected to CLIP's shared space.
    """

    # What transformers writes, or once wrote, into every configuration and no text encoder depends
    # on: how a model is kept and asked, what a decoder is and how text is generated.
    housekeeping = frozenset(
        """transformers_version dtype torch_dtype return_dict output_hidden_states output_attentions
        chunk_size_feed_forward is_encoder_decoder id2label label2id problem_type
        use_cache use_bfloat16 torchscript tf_legacy_loss gradient_checkpointing tokenizer_class
        finetuning_task task_specific_params tie_word_embeddings tie_encoder_decoder
        is_decoder add_cross_attention cross_attention_hidden_size decoder_start_token_id
        sep_token_id prefix max_length min_length do_sample early_stopping num_beams
        num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
        length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
        num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
        forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens""".split()  # noqa: SIM905
    )

    architectures: tuple[Literal["CLIPTextModel", "CLIPTextModelWithProjection"], ...] | None = (
        "CLIPTextModel",
    )
    model_type: Literal["clip_text_model"] = "clip_text_model"
    vocab_size: Length = 49408
    hidden_size: Length = 512
    intermediate_size: Length = 2048
    num_hidden_layers: Length = 12
    num_attention_heads: Length = 8
    max_position_embeddings: Length = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    attention_dropout: float = Field(0.0, ge=0, le=0)
    dropout: float = Field(0.0, ge=0, le=0)
    # The width of CLIP's shared space, in which pictures and texts are compared.
    projection_dim: LengthOr0 | None = 512
    # Heads that are left out; only the neutral value passes.
    pruned_heads: dict[str, object] = Field({}, max_length=0, exclude=True)
    pad_token_id: Token | None = 1
    bos_token_id: Token | None = 49406
    eos_token_id: Token | tuple[Token, ...] | None = 49407

    @model_validator(mode="after")
    def _check(self) -> TextEncoderConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads must divide hidden_size")
        if self.projects:
            if self.projection_dim is None or self.projection_dim < 1:
                raise ValueError("CLIPTextModelWithProjection needs a projection_dim above 0")
            if not isinstance(self.eos_token_id, int):
                raise ValueError("CLIPTextModelWithProjection needs one eos_token_id")
        return self

    @property
    def projects(self) -> bool:
        """Whether there is a `text_projection`, which gives the text as one vector."""
        return "CLIPTextModelWithProjection" in (self.architectures or ())


class ControlNetConfig(UNetConfig):
    """The fields of diffusers' ControlNetModel: the U-Net whose half it repeats, and what it sees.

    `conditioning_embedding_out_channels`: each but the first halves the hint once more;
    `global_pool_conditions`: what it adds is the same at every pixel, its mean ("shuffle").
    """

    # What a U-Net's other half needs, and ControlNetModel's configuration has no field for.
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
    conditioning_channels: Literal[3] = 3
    conditioning_embedding_out_channels: tuple[Length, ...] = Field((16, 32, 96, 256), min_length=1)
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    global_pool_conditions: bool = False

    @model_serializer(mode="wrap")
    def _published(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in self.unets}

    @classmethod
    def of(cls, unet: UNetConfig) -> Self:
        """That of a ControlNet for a U-Net."""
        return cls.model_validate(unet.model_dump(exclude=set(cls.unets)))
