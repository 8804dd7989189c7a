"""The keys of each network in the original code.

CompVis' and Stability's `openaimodel.UNetModel`, `model.Encoder` and `model.Decoder`, Stability's
`video_model.VideoUNet` and `temporal_ae.VideoDecoder`, OpenCLIP's text and vision transformers, and
`cldm.ControlNet` of Zhang et al. 2023. For every network: a table of its
modules, from a walk over its configuration or its names, and a table of what is called otherwise
inside a module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from undust.errors import UndustError
from undust.formats.original.key_map import KeySpec, TensorLayout
from undust.networks.config import (
    AutoencoderConfig,
    EncoderDecoderConfig,
    SpatioTemporalUNetConfig,
    TemporalAutoencoderConfig,
    TextEncoderConfig,
    UNetConfig,
)

Modules = dict[str, str]
"""Our name of a module or tensor → the original one."""

UNET = {  # inside a residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
FIRST_STAGE = {"conv_shortcut": "nin_shortcut"}
PIXEL_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPEN_CLIP_STACK = {
    "self_attn.q_proj": TensorLayout.QUERY,
    "self_attn.k_proj": TensorLayout.KEY,
    "self_attn.v_proj": TensorLayout.VALUE,
}
VISION_LAYER = {
    "norm1": "ln_1",
    "out": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
VISION_STACK = {"q": TensorLayout.QUERY, "k": TensorLayout.KEY, "v": TensorLayout.VALUE}
VISION = {  # outside of the layers
    "token": "class_embedding",
    "patches": "conv1",
    "positions": "positional_embedding",
    "pre_norm": "ln_pre",
    "norm": "ln_post",
    "projection.weight": "proj",
}
OVER_FRAMES = {  # inside a transformer
    "temporal_transformer_blocks": "time_stack",
    "time_pos_embed.linear_1": "time_pos_embed.0",
    "time_pos_embed.linear_2": "time_pos_embed.2",
}
PROJECTION = "text_projection.weight"  # of the end's state, in our CLIPs that have one


def unet(names: Iterable[str], config: UNetConfig) -> dict[str, KeySpec]:
    """The key map of a U-Net, below `model.diffusion_model.`."""
    modules = _unet_modules(config)
    return {name: KeySpec(_renamed(name, modules, UNET)) for name in names}


def controlnet(names: Collection[str]) -> dict[str, KeySpec]:
    """The key map of a ControlNet, whose numbers of layers are inferred from the names.

    Names of other networks are left out.
    """
    modules = _controlnet_modules(names)
    known = (name for name in names if _module(name, modules))
    return {name: KeySpec(_renamed(name, modules, UNET)) for name in known}


def video_unet(names: Iterable[str], config: SpatioTemporalUNetConfig) -> dict[str, KeySpec]:
    """The key map of a U-Net over films, below `model.diffusion_model.`."""
    pictures = _unet_modules(config)
    modules = {**pictures, **_over_frames(pictures, "time_mixer")}
    for ours, theirs in pictures.items():
        if ".attentions." in ours:
            modules |= {
                f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in OVER_FRAMES.items()
            }
    return {name: KeySpec(_renamed(name, modules, UNET)) for name in names}


def first_stage(names: Iterable[str], config: AutoencoderConfig) -> dict[str, KeySpec]:
    """The key map of an autoencoder, below `first_stage_model.`."""
    return _first_stage(names, _first_stage_modules(config))


def temporal_first_stage(
    names: Iterable[str], config: TemporalAutoencoderConfig
) -> dict[str, KeySpec]:
    """The key map of an autoencoder with a decoder over films, below `first_stage_model.`."""
    pictures = _first_stage_modules(config)
    decoder = {ours: theirs for ours, theirs in pictures.items() if ours.startswith("decoder.")}
    modules = {**pictures, **_over_frames(decoder, "")}
    modules["decoder.time_conv_out"] = "decoder.conv_out.time_mix_conv"
    return _first_stage(names, modules)


def _first_stage(names: Iterable[str], modules: Modules) -> dict[str, KeySpec]:
    matrices = tuple(f".{name}.weight" for name in PIXEL_ATTENTION if name != "group_norm")
    return {
        name: KeySpec(
            _renamed(name, modules, FIRST_STAGE),
            TensorLayout.PIXEL
            if ".attentions." in name and name.endswith(matrices)
            else TensorLayout.SAME,
        )
        for name in names
    }


def clip(names: Iterable[str], _: TextEncoderConfig | None = None) -> dict[str, KeySpec]:
    """The key map of transformers' CLIP, which the original code uses unchanged."""
    return {name: KeySpec(name) for name in names}


def open_clip(names: Iterable[str], config: TextEncoderConfig) -> dict[str, KeySpec]:
    """The key map of an OpenCLIP, where queries, keys and values are one matrix."""
    return _stacked(names, _open_clip_modules(config), OPEN_CLIP_STACK, PROJECTION)


def open_clip_vision(names: Collection[str]) -> dict[str, KeySpec]:
    """The key map of an OpenCLIP's vision transformer, below `visual.`."""
    layers = {name.split(".")[1] for name in names if name.startswith("layers.")}
    modules = dict(VISION)
    for number in layers:
        ours, theirs = f"layers.{number}", f"transformer.resblocks.{number}"
        modules[ours] = theirs
        modules |= {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in VISION_LAYER.items()}
    return _stacked(names, modules, VISION_STACK, "projection.weight")


def _stacked(
    names: Iterable[str], modules: Modules, stack: Mapping[str, TensorLayout], transposed: str
) -> dict[str, KeySpec]:
    """A key map where the projections of a layer in `stack` are one matrix."""
    found: dict[str, KeySpec] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        part = next((part for part in stack if module.endswith(f".{part}")), None)
        if part is not None:
            block = _renamed(module.removesuffix(f".{part}"), modules, {})
            found[name] = KeySpec(f"{block}.attn.in_proj_{kind}", stack[part])
        else:
            form = TensorLayout.TRANSPOSED if name == transposed else TensorLayout.SAME
            found[name] = KeySpec(_renamed(name, modules, {}), form)
    return found


class TextLayout(NamedTuple):
    """A code base's layout of a text encoder: some of its keys, and the map of all of them.

    layer, hidden: the key of each layer's norm, and of the first one's feed-forward part.
    """

    title: str
    tokens: str
    positions: str
    layer: str
    hidden: str
    keys: Callable[[Collection[str], TextEncoderConfig], dict[str, KeySpec]]


CLIP = TextLayout(
    "CLIP",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.{}.layer_norm1.weight",
    "text_model.encoder.layers.0.mlp.fc1.weight",
    clip,
)
OPEN_CLIP = TextLayout(
    "OpenCLIP",
    "token_embedding.weight",
    "positional_embedding",
    "transformer.resblocks.{}.ln_1.weight",
    "transformer.resblocks.0.mlp.c_fc.weight",
    open_clip,
)


def ema(key: str) -> str:
    """The key of the moving average of `model.…`: the same without its dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def _renamed(name: str, modules: Modules, inside: Mapping[str, str]) -> str:
    """The original name: that of the innermost known module, and the rest."""
    found = _module(name, modules)
    if found is None:
        raise UndustError(f"the original layout has no name for {name}")
    module, rest = found
    return ".".join([module, *(inside.get(part, part) for part in rest[:1]), *rest[1:]])


def _module(name: str, modules: Modules) -> tuple[str, list[str]] | None:
    """The original name of the innermost known module, and the rest of ours."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = modules.get(".".join(parts[:cut]))
        if module is not None:
            return module, parts[cut:]
    return None


def _over_frames(pictures: Modules, mixer: str) -> Modules:
    """The parts of residual blocks over films; mixer: where their `mix_factor` is, "" for beside.

    The block over pixels has the names of one for pictures, with the block over frames inside.
    """
    modules: Modules = {}
    for ours, theirs in pictures.items():
        if ".resnets." in ours:
            modules[f"{ours}.spatial_res_block"] = theirs
            modules[f"{ours}.time_mixer"] = f"{theirs}.{mixer}".removesuffix(".")
            for mine, other in UNET.items():
                modules[f"{ours}.temporal_res_block.{mine}"] = f"{theirs}.time_stack.{other}"
    return modules


def _unet_modules(config: UNetConfig | SpatioTemporalUNetConfig) -> Modules:
    levels = len(config.block_out_channels)
    modules = {
        **_encoder_modules([config.at("layers_per_block", level) for level in range(levels)]),
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    blocks = (f"output_blocks.{number}" for number in count())
    for step, kind in enumerate(config.up_block_types):
        ours, block = f"up_blocks.{step}", ""
        level = levels - 1 - step
        for layer in range(config.at("layers_per_block", level) + 1):
            block = next(blocks)
            modules |= _layer(ours, layer, block)
        if level:
            after = 2 if kind.startswith("CrossAttn") else 1
            modules[f"{ours}.upsamplers.0.conv"] = f"{block}.{after}.conv"
    return modules


def _encoder_modules(layers: Sequence[int]) -> Modules:
    """The encoder, with these numbers of layers at each level, and the middle block."""
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    blocks = (f"input_blocks.{number}" for number in count(1))
    for level, amount in enumerate(layers):
        ours = f"down_blocks.{level}"
        for layer in range(amount):
            modules |= _layer(ours, layer, next(blocks))
        if level < len(layers) - 1:
            modules[f"{ours}.downsamplers.0.conv"] = f"{next(blocks)}.0.op"
    return modules


def _controlnet_modules(names: Collection[str]) -> Modules:
    seen = set(names)

    def amount(name: str) -> int:
        return next(number for number in count() if name.format(number) not in seen)

    levels = range(amount("down_blocks.{}.resnets.0.conv1.weight"))
    layers = [amount(f"down_blocks.{level}.resnets.{{}}.conv1.weight") for level in levels]
    modules = _encoder_modules(layers)
    hint, theirs = "controlnet_cond_embedding", "input_hint_block"
    blocks = amount(f"{hint}.blocks.{{}}.weight")
    # There, the activation after each convolution is counted too.
    modules |= {f"{hint}.conv_in": f"{theirs}.0", f"{hint}.conv_out": f"{theirs}.{2 * blocks + 2}"}
    modules |= {f"{hint}.blocks.{block}": f"{theirs}.{2 * block + 2}" for block in range(blocks)}
    modules |= {
        f"controlnet_down_blocks.{block}": f"zero_convs.{block}.0"
        for block in range(amount("controlnet_down_blocks.{}.weight"))
    }
    return {**modules, "controlnet_mid_block": "middle_block_out.0"}


def _layer(ours: str, layer: int, block: str) -> Modules:
    """A residual block and the transformer that may follow it."""
    return {f"{ours}.resnets.{layer}": f"{block}.0", f"{ours}.attentions.{layer}": f"{block}.1"}


def _first_stage_modules(config: EncoderDecoderConfig) -> Modules:
    levels = len(config.block_out_channels)
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        modules |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
            f"{half}.mid_block.resnets.1": f"{half}.mid.block_2",
            f"{half}.conv_norm_out": f"{half}.norm_out",
            f"{half}.conv_out": f"{half}.conv_out",
        }
        modules |= _pixel_attention(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1")
    for level in range(levels):
        # The original numbers the decoder's levels by resolution, as the encoder's.
        for ours, theirs, way, layers in (
            (f"encoder.down_blocks.{level}", f"encoder.down.{level}", "down", 0),
            (f"decoder.up_blocks.{levels - 1 - level}", f"decoder.up.{level}", "up", 1),
        ):
            for layer in range(config.layers_per_block + layers):
                modules[f"{ours}.resnets.{layer}"] = f"{theirs}.block.{layer}"
                modules |= _pixel_attention(f"{ours}.attentions.{layer}", f"{theirs}.attn.{layer}")
            modules[f"{ours}.{way}samplers.0.conv"] = f"{theirs}.{way}sample.conv"
    return modules


def _pixel_attention(ours: str, theirs: str) -> Modules:
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in PIXEL_ATTENTION.items()}


def _open_clip_modules(config: TextEncoderConfig) -> Modules:
    return {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        PROJECTION: "text_projection",
        **dict(_open_clip_layers(config.num_hidden_layers)),
    }


def _open_clip_layers(layers: int) -> Iterator[tuple[str, str]]:
    for number in range(layers):
        ours, theirs = f"text_model.encoder.layers.{number}", f"transformer.resblocks.{number}"
        yield ours, theirs
        for mine, other in OPEN_CLIP_LAYER.items():
            yield f"{ours}.{mine}", f"{theirs}.{other}"
