"""The configurations of the diffusion transformers, with classes or text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from undust.networks.config.base import Length, PatchConfig


class DiTConfig(PatchConfig):
    """The fields of diffusers' DiTTransformer2DModel, and its defaults (Peebles & Xie 2023).

    With twice as many output as input channels the second half is the learnt variance.
    """

    label_field: ClassVar[str] = "num_embeds_ada_norm"
    null_class: ClassVar[bool] = True

    sample_size: int | tuple[int, int] | None = Field(
        32, description="training size of the latents, one number"
    )
    out_channels: Length = Field(
        default_factory=lambda data: data["in_channels"],
        description="output channels: the latent's; twice as many with a learnt variance",
    )
    num_attention_heads: Length = Field(16, description="number of attention heads")
    attention_head_dim: Length = Field(
        72, description="channels of a head; times the heads, the width of the network"
    )
    num_layers: Length = Field(28, description="number of transformer blocks")
    attention_bias: bool = Field(True, description="biases of queries, keys and values")
    num_embeds_ada_norm: Length = Field(
        1000, description="number of classes; one more embedding is for no class"
    )
    norm_eps: float = Field(1e-5, gt=0, description="ε of the feed-forward's normalisation")

    # Options without an effect, or not implemented and restricted to their neutral value.
    norm_num_groups: Length = Field(32, description="without an effect")
    dropout: float = Field(
        0.0, ge=0, le=0, description="share of activations dropped in training; not supported"
    )
    activation_fn: Literal["gelu-approximate"] = Field(
        "gelu-approximate", description="activation; no other is supported"
    )
    upcast_attention: bool = Field(
        False,
        description="attention in float32, for other programs; undust always sums in float32",
    )
    norm_type: Literal["ada_norm_zero", "ada_norm_single"] = Field(
        "ada_norm_zero", description="kind of normalisation; no other is supported"
    )
    norm_elementwise_affine: Literal[False] = Field(
        False, description="learnt factors in the normalisations; not supported"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_none(cls, fields: Any) -> Any:
        """Drops out_channels of null, which stands for as many as in_channels."""
        if not isinstance(fields, Mapping):
            return fields
        known = cast("Mapping[str, Any]", fields)
        return {k: v for k, v in known.items() if v is not None or k != "out_channels"}

    @model_validator(mode="after")
    def _check(self) -> DiTConfig:
        kind = "ada_norm_single" if isinstance(self, PixArtConfig) else "ada_norm_zero"
        if self.norm_type != kind:
            raise ValueError(f"norm_type has to be {kind}")
        if self.width % 4:
            raise ValueError("num_attention_heads · attention_head_dim must be divisible by 4")
        return self

    @property
    def width(self) -> int:
        """The channels of its tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def position_scale(self) -> float:
        """The divisor of the patches' positions."""
        return 1.0

    @property
    def latent_channels(self) -> int:
        """The output channels without those of a learnt variance."""
        learnt = self.out_channels == 2 * self.in_channels
        return self.in_channels if learnt else self.out_channels


class PixArtConfig(DiTConfig):
    """The fields of diffusers' PixArtTransformer2DModel, and its defaults (Chen et al. 2023).

    Text by cross-attention, and one modulation from the time step that is common to all blocks.
    """

    label_field: ClassVar[str] = ""
    text_field: ClassVar[str] = "caption_channels"
    needs_text: ClassVar[bool] = True
    null_class: ClassVar[bool] = False

    sample_size: int | tuple[int, int] | None = Field(
        128, description="training size of the latents, one number"
    )
    out_channels: Length = Field(
        8, description="output channels: the latent's; twice as many with a learnt variance"
    )
    num_embeds_ada_norm: Length = Field(1000, description="without an effect")
    norm_eps: float = Field(1e-6, gt=0, description="ε of the normalisations")
    norm_type: Literal["ada_norm_zero", "ada_norm_single"] = Field(
        "ada_norm_single", description="kind of normalisation; no other is supported"
    )
    caption_channels: Length | None = Field(
        None,
        description="channels of text tokens before their projection; without it there is none",
    )
    cross_attention_dim: Length = Field(
        default_factory=lambda data: data["num_attention_heads"] * data["attention_head_dim"],
        description="channels of the text tokens in the blocks; with a projection the width",
    )
    interpolation_scale: float | None = Field(
        None, gt=0, description="divisor of the positions; without it sample_size // 64, at least 1"
    )

    # Options that are not implemented, restricted to their neutral value.
    use_additional_conditions: Literal[False] | None = Field(
        None, description="resolution and aspect ratio as conditions; not supported"
    )
    attention_type: Literal["default"] = Field(
        "default", description="kind of attention block; no other is supported"
    )

    @model_validator(mode="after")
    def _check_text(self) -> PixArtConfig:
        # A recipe leaves out the size, which is derived; a config.json has it.
        large = "sample_size" in self.model_fields_set and self.sample_size == 128
        if self.use_additional_conditions is None and large:
            raise ValueError(
                "use_additional_conditions is true where it is left out with a sample_size of 128, "
                "which is not supported; false is"
            )
        if self.caption_channels is not None and self.cross_attention_dim != self.width:
            raise ValueError(
                f"cross_attention_dim has to be {self.width}, the width, with caption_channels"
            )
        return self

    @property
    def text_widths(self) -> frozenset[int]:
        """The width of text tokens."""
        return frozenset({self.caption_channels or self.cross_attention_dim})

    @property
    def position_scale(self) -> float:
        """The divisor of the patches' positions, larger for large pictures."""
        return self.interpolation_scale or max(self.patches * self.patch_size // 64, 1)
