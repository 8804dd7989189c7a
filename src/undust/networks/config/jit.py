"""The configuration of the patch transformer for pixels."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from undust.networks.config.base import Length, LengthOr0, PatchConfig


class JiTConfig(PatchConfig):
    """The patch transformer of Li & He 2025 ("Back to Basics"); the defaults are JiT-B/16's.

    Classes, text, both or neither. It is meant for pixels, large patches and the prediction
    "sample".
    """

    label_field: ClassVar[str] = "num_classes"
    text_field: ClassVar[str] = "text_channels"
    null_class: ClassVar[bool] = True

    sample_size: int | tuple[int, int] | None = Field(
        256, description="training size of the pictures, one number, pixels"
    )
    in_channels: Length = Field(3, description="input channels: the pictures' and extra ones")
    out_channels: Length = Field(3, description="output channels: the pictures'")
    patch_size: Length = Field(16, description="side of a patch, pixels")
    hidden_size: Length = Field(768, description="width of the network")
    num_layers: Length = Field(12, description="number of transformer blocks")
    num_attention_heads: Length = Field(12, description="number of attention heads")
    mlp_ratio: float = Field(
        4.0, gt=0, le=64, description="hidden width of the feed-forward layers, times 2/3"
    )
    bottleneck_dim: Length = Field(
        128, description="channels between the two linear layers over each patch"
    )
    num_classes: Length | None = Field(
        None, description="number of classes; one more embedding is for no class"
    )
    in_context_len: LengthOr0 = Field(
        32, description="tokens of the class beside those of the patches"
    )
    in_context_start: LengthOr0 = Field(
        default_factory=lambda data: data["num_layers"] // 3,
        description="blocks before the one from which the tokens of the class are there; in the "
        "paper a third of num_layers",
    )
    text_channels: Length | None = Field(
        None, description="channels of text tokens, for cross-attention in every block"
    )

    @model_validator(mode="after")
    def _check(self) -> JiTConfig:
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError("hidden_size has to be divisible by 4 · num_attention_heads")
        if self.in_context_start >= self.num_layers:
            raise ValueError("in_context_start has to be below num_layers")
        return self

    @property
    def text_widths(self) -> frozenset[int]:
        """The width of text tokens; empty without text."""
        return frozenset({self.text_channels} if self.text_channels else ())
