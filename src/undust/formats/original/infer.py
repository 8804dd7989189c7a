"""The networks' configurations, from the shapes of their tensors in an original file.

Settings that leave no trace in the shapes (the number of attention heads, the activation, the
latents' scale) come from the caller. `key_map.check_tensors` checks afterwards that all tensors fit
the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from math import isqrt
from typing import Any, TypeVar

from undust.errors import UndustError
from undust.formats.original.key_map import Shape
from undust.formats.original.keys import TextLayout
from undust.networks.config import (
    LARGEST,
    AutoencoderConfig,
    ControlNetConfig,
    SpatioTemporalUNetConfig,
    TemporalAutoencoderConfig,
    TextEncoderConfig,
    UNetConfig,
)
from undust.networks.features.vision_transformer import VisionTransformerShape

Shapes = Mapping[str, Shape]
Heads = Callable[[int], int]
T = TypeVar("T")

SIZE_CHANNELS = 256  # of the sinusoid of each of SDXL's sizes
HEAD_WIDTH = 64  # of every CLIP text encoder
PROJECTION = "text_projection"  # of OpenCLIP; other CLIPs' is not used
VISION_HEAD_WIDTH = 80  # of OpenCLIP's ViT-H
FILM_NUMBERS = 3  # frame rate, motion bucket and noise, each with a sinusoid
# Fields of U-Nets over pictures and films with the same meaning.
SHARED_FIELDS = {
    *("in_channels", "out_channels", "block_out_channels", "layers_per_block", "sample_size"),
    *("cross_attention_dim", "transformer_layers_per_block"),
}


def eight_heads(_: int) -> int:
    """8 attention heads at any width, as in the first U-Nets."""
    return 8


def heads_of_64(width: int) -> int:
    """The number of attention heads of 64 channels for a width."""
    return width // 64


@dataclass(frozen=True)
class _Level:
    """One resolution of a U-Net; context is 0 where no transformer sees the text."""

    width: int
    layers: int
    crossed: bool
    depth: int
    context: int
    only_cross: bool


def unet(shapes: Shapes, *, heads: Heads, sample_size: int | None = None) -> UNetConfig:
    """The configuration of the U-Net whose tensors have these shapes, below its prefix.

    heads: a level's width → its attention heads. Raises UndustError for tensors of no such network.
    """
    levels = _levels(shapes)
    return UNetConfig.read(
        {
            **_encoder(shapes, levels, heads),
            "sample_size": sample_size,
            "out_channels": _length(shapes, "out.2.weight", 0),
            "up_block_types": [
                "CrossAttnUpBlock2D" if _depth(shapes, f"{block}.1") else "UpBlock2D"
                for block in _up_blocks(levels)
            ],
        }
    )


def video_unet(shapes: Shapes, *, num_frames: int) -> SpatioTemporalUNetConfig:
    """The configuration of the U-Net over films whose tensors have these shapes.

    Below its prefix; num_frames: of films in training. Raises UndustError for tensors of no such
    network.
    """
    # Its layers over pixels are those of a U-Net over pictures; its numbers beside the time differ.
    rest = {key: shape for key, shape in shapes.items() if not key.startswith("label_emb.")}
    over_pixels = unet(rest, heads=heads_of_64)
    numbers = _length(shapes, "label_emb.0.0.weight", 1)
    if numbers % FILM_NUMBERS:
        raise UndustError(
            f"label_emb.0.0.weight has {numbers} input channels, which are not those of "
            f"{FILM_NUMBERS} numbers (frame rate, motion and noise)"
        )

    def kinds(blocks: tuple[str, ...]) -> list[str]:
        return [block.replace("2D", "SpatioTemporal") for block in blocks]

    return SpatioTemporalUNetConfig.read(
        {
            **over_pixels.model_dump(include=SHARED_FIELDS),
            "down_block_types": kinds(over_pixels.down_block_types),
            "up_block_types": kinds(over_pixels.up_block_types),
            "num_attention_heads": over_pixels.attention_head_dim,
            "addition_time_embed_dim": numbers // FILM_NUMBERS,
            "projection_class_embeddings_input_dim": numbers,
            "num_frames": num_frames,
        }
    )


def controlnet(shapes: Shapes, *, heads: Mapping[int, Heads]) -> ControlNetConfig:
    """The configuration of the ControlNet whose tensors have these shapes, below its prefix.

    heads: the width of the text → a level's width → its attention heads. Raises UndustError for
    tensors of no such network, and for texts of other widths.
    """
    levels = _levels(shapes)
    context = max(_contexts(shapes, levels))
    if context and context not in heads:
        known = ", ".join(map(str, heads))
        raise UndustError(
            f"it takes a text of {context} channels, for which the number of attention heads is "
            f"unknown (known for {known}); a config.json beside it can set it"
        )
    # Two convolutions for each width, an activation after each, and a last one, out.
    hint = "input_hint_block.{}.weight"
    places = [place for place in range(2 * len(shapes)) if hint.format(place) in shapes]
    return ControlNetConfig.read(
        {
            **_encoder(shapes, levels, heads.get(context, lambda _: 1), least=0),
            "conditioning_channels": _length(shapes, hint.format(0), 1),
            "conditioning_embedding_out_channels": [
                _length(shapes, hint.format(place), 0) for place in range(0, max(places), 4)
            ],
        }
    )


def first_stage(
    shapes: Shapes, *, scaling_factor: float = 0.18215, sample_size: int = 512
) -> AutoencoderConfig:
    """The configuration of the autoencoder whose tensors have these shapes, below its prefix.

    Raises UndustError for tensors of no such network.
    """
    levels = _there(shapes, "encoder.down.{}.block.0.conv1.weight")
    if not levels:
        raise UndustError("the first stage has no encoder.down.0.block.0.conv1.weight")
    return AutoencoderConfig.read(
        {
            "in_channels": _length(shapes, "encoder.conv_in.weight", 1),
            "out_channels": _length(shapes, "decoder.conv_out.weight", 0),
            "block_out_channels": [_length(shapes, level, 0) for level in levels],
            "down_block_types": [
                f"{'Attn' * (f'encoder.down.{level}.attn.0.q.weight' in shapes)}DownEncoderBlock2D"
                for level in range(len(levels))
            ],
            "up_block_types": [
                f"{'Attn' * (f'decoder.up.{level}.attn.0.q.weight' in shapes)}UpDecoderBlock2D"
                for level in reversed(range(len(levels)))
            ],
            "layers_per_block": len(_there(shapes, "encoder.down.0.block.{}.conv1.weight")),
            "latent_channels": _length(shapes, "decoder.conv_in.weight", 1),
            "sample_size": sample_size,
            "scaling_factor": scaling_factor,
            "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes,
            "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        }
    )


def temporal_first_stage(
    shapes: Shapes, *, scaling_factor: float = 0.18215, sample_size: int = 768
) -> TemporalAutoencoderConfig:
    """The configuration of the autoencoder with a decoder over films, below its prefix.

    Raises UndustError for tensors of no such network.
    """
    known = first_stage(shapes, scaling_factor=scaling_factor, sample_size=sample_size)
    fields = known.model_dump(include=set(TemporalAutoencoderConfig.model_fields))
    left_out = TemporalAutoencoderConfig.absent
    return TemporalAutoencoderConfig.read(
        {name: value for name, value in fields.items() if name not in left_out}
    )


def open_clip_vision(
    shapes: Shapes, colours: tuple[tuple[float, ...], tuple[float, ...]]
) -> VisionTransformerShape:
    """The sizes of OpenCLIP's vision transformer whose tensors have these shapes, below `visual.`.

    Raises UndustError for tensors of no such network.
    """
    width = _length(shapes, "class_embedding", 0)
    patch = _length(shapes, "conv1.weight", 2)
    side = isqrt(_length(shapes, "positional_embedding", 0) - 1)
    heads = max(1, width // VISION_HEAD_WIDTH)
    if not side or width % heads:
        raise UndustError(f"an image encoder of width {width} with {side}x{side} patches")
    return VisionTransformerShape(
        width=width,
        depth=len(_there(shapes, "transformer.resblocks.{}.ln_1.weight")),
        heads=heads,
        hidden=_length(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 0),
        patch=patch,
        image_size=side * patch,
        eps=1e-5,
        colours=colours,
        pre_norm=True,
        projection=_length(shapes, "proj", 1),
    )


def text_encoder(
    shapes: Shapes,
    layout: TextLayout,
    *,
    activation: str,
    layers: int | None = None,
    projected: bool = False,
) -> TextEncoderConfig:
    """The configuration of the text encoder whose tensors have these shapes, below its prefix.

    layers: how many are used at most, though there may be more; projected: whether its projection
    is used. Raises UndustError for tensors of no such network.
    """
    width = _length(shapes, layout.tokens, 1)
    return TextEncoderConfig.read(
        {
            "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
            "vocab_size": _length(shapes, layout.tokens, 0),
            "hidden_size": width,
            "intermediate_size": _length(shapes, layout.hidden, 0),
            "num_hidden_layers": len(_there(shapes, layout.layer)[:layers]),
            "num_attention_heads": max(1, width // HEAD_WIDTH),
            "max_position_embeddings": _length(shapes, layout.positions, 0),
            "hidden_act": activation,
            "projection_dim": _length(shapes, PROJECTION, 1) if projected else width,
        }
    )


def _encoder(
    shapes: Shapes, levels: list[_Level], heads: Heads, *, least: int = 1
) -> dict[str, Any]:
    """The fields of the encoder and the middle; least: the fewest blocks of a transformer."""
    crossed = [level.crossed and level.depth >= least for level in levels]
    depths = [level.depth if here else 1 for level, here in zip(levels, crossed, strict=True)]
    contexts = _contexts(shapes, levels)
    depth = _depth(shapes, "middle_block.1")
    if middle := _crossed(shapes, "middle_block.1") and depth >= least:
        depths[-1] = depth
    only_cross = [level.only_cross for level in levels]
    projections = [shape for key, shape in shapes.items() if key.endswith(".1.proj_in.weight")]
    added: dict[str, Any] = {}
    if "label_emb.0.0.weight" in shapes:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_CHANNELS,
            "projection_class_embeddings_input_dim": _length(shapes, "label_emb.0.0.weight", 1),
        }
    elif "label_emb.weight" in shapes:
        added = {"num_class_embeds": _length(shapes, "label_emb.weight", 0)}
    return {
        "in_channels": _length(shapes, "input_blocks.0.0.weight", 1),
        "block_out_channels": [level.width for level in levels],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in crossed],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "layers_per_block": _shared([level.layers for level in levels]),
        # Without attention, any width of the text fits.
        "cross_attention_dim": _shared([context or max(contexts) or 1 for context in contexts]),
        "transformer_layers_per_block": _shared(depths),
        "attention_head_dim": _shared([max(1, heads(level.width)) for level in levels]),
        "only_cross_attention": only_cross if any(only_cross) else False,
        "use_linear_projection": any(len(shape) == 2 for shape in projections),
        **added,
    }


def _contexts(shapes: Shapes, levels: list[_Level]) -> list[int]:
    """The width of the text at each level, 0 for none; the middle belongs to the last one."""
    contexts = [level.context for level in levels]
    if _depth(shapes, "middle_block.1"):
        contexts[-1] = _length(shapes, _keys("middle_block.1", 2), 1)
    return contexts


def _levels(shapes: Shapes) -> list[_Level]:
    """The levels of the encoder: residual blocks between strided layers."""
    levels: list[_Level] = []
    blocks: list[str] = []
    for number in count(1):
        block = f"input_blocks.{number}"
        if f"{block}.0.in_layers.2.weight" in shapes:
            blocks.append(block)
            continue
        if not blocks:
            raise UndustError(f"the U-Net has no {block}.0.in_layers.2.weight")
        levels.append(_level(shapes, blocks))
        blocks = []
        if f"{block}.0.op.weight" not in shapes:
            break
    return levels


def _level(shapes: Shapes, blocks: list[str]) -> _Level:
    first = f"{blocks[0]}.1"
    width = _length(shapes, f"{blocks[0]}.0.out_layers.3.weight", 0)
    depth = _depth(shapes, first)
    return _Level(
        width=width,
        layers=len(blocks),
        crossed=_crossed(shapes, first),
        depth=depth,
        context=_length(shapes, _keys(first, 2), 1) if depth else 0,
        only_cross=bool(depth) and _length(shapes, _keys(first, 1), 1) != width,
    )


def _up_blocks(levels: list[_Level]) -> list[str]:
    """The first block of each level of the decoder, the coarsest level first."""
    number, blocks = 0, list[str]()
    for level in reversed(levels):
        blocks.append(f"output_blocks.{number}")
        number += level.layers + 1
    return blocks


def _crossed(shapes: Shapes, transformer: str) -> bool:
    return f"{transformer}.proj_in.weight" in shapes or _depth(shapes, transformer) > 0


def _depth(shapes: Shapes, transformer: str) -> int:
    return len(_there(shapes, f"{transformer}.transformer_blocks.{{}}.norm1.weight"))


def _keys(transformer: str, attention: int) -> str:
    """The projection to keys, whose second length is the width of the attended tokens."""
    return f"{transformer}.transformer_blocks.0.attn{attention}.to_k.weight"


def _there(shapes: Shapes, name: str) -> list[str]:
    """The existing names with 0, 1, … for {}, up to the first missing one."""
    return list(takewhile(shapes.__contains__, (name.format(number) for number in count())))


def _length(shapes: Shapes, key: str, axis: int) -> int:
    if key not in shapes:
        raise UndustError(f"{key} is missing")
    shape = shapes[key]
    if len(shape) <= axis or not all(0 < length <= LARGEST for length in shape):
        raise UndustError(f"{key} has the unsupported shape {list(shape)}")
    return shape[axis]


def _shared(values: list[T]) -> T | list[T]:
    """A single value if it is the same for all levels, as in published configurations."""
    return values[0] if len(set(values)) == 1 else values
