"""The denoising U-Net of latent diffusion (Rombach et al. 2022), with and without text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.attention import (
    Perturbation,
    PixelAttention,
    SpatialTransformer,
    TokenEmbedding,
    replaced,
)
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import SpatioTemporalUNetConfig, UNet2DConfig, UNetConfig
from undust.networks.deep_cache import DeepFeatures
from undust.networks.layers import Downsample, ResnetBlock, TimestepEmbedding, Upsample, sinusoids
from undust.networks.temporal import SpatioTemporalResnet, SpatioTemporalTransformer

AnyUNetConfig = UNetConfig | UNet2DConfig | SpatioTemporalUNetConfig


def _resnet(config: AnyUNetConfig, in_channels: int, out_channels: int) -> nn.Module:
    if isinstance(config, SpatioTemporalUNetConfig):
        return SpatioTemporalResnet(
            in_channels,
            out_channels,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            temporal_eps=config.norm_eps,
            time_channels=4 * config.block_out_channels[0],
        )
    return ResnetBlock(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_channels=4 * config.block_out_channels[0],
        scaled=config.resnet_time_scale_shift == "scale_shift",
    )


def _attentions(
    config: AnyUNetConfig, level: int, depths: Sequence[int], *, middle: bool = False
) -> nn.ModuleList:
    """The attention behind each residual block of a level; depths: of their transformers."""
    width = config.block_out_channels[level]
    if isinstance(config, UNet2DConfig):
        heads = width // (config.attention_head_dim or width)
        groups = config.mid_norm_groups if middle else config.norm_num_groups
        return nn.ModuleList(
            PixelAttention(width, groups=groups, eps=config.norm_eps, heads=heads) for _ in depths
        )
    if isinstance(config, SpatioTemporalUNetConfig):
        return nn.ModuleList(
            SpatioTemporalTransformer(
                width,
                depth=depth,
                heads=config.at("num_attention_heads", level),
                context_channels=config.at("cross_attention_dim", level),
                groups=config.norm_num_groups,
            )
            for depth in depths
        )
    return nn.ModuleList(
        SpatialTransformer(
            width,
            depth=depth,
            heads=config.at("attention_head_dim", level),
            context_channels=config.at("cross_attention_dim", level),
            groups=config.norm_num_groups,
            linear=config.use_linear_projection,
            only_cross=not middle and config.crosses_only(level),
        )
        for depth in depths
    )


def _added(config: AnyUNetConfig) -> TokenEmbedding | TimestepEmbedding | None:
    """The embedding of conditions that are added to the time embedding; None without any."""
    if isinstance(config, UNet2DConfig):
        return None
    channels = 4 * config.block_out_channels[0]
    if isinstance(config, SpatioTemporalUNetConfig):
        return TimestepEmbedding(config.projection_class_embeddings_input_dim, channels)
    if config.addition_embed_type == "text":
        heads = config.addition_embed_type_num_heads
        return TokenEmbedding(config.at("cross_attention_dim", 0), channels, heads)
    width = config.projection_class_embeddings_input_dim
    if config.addition_embed_type == "text_time" and width is not None:
        return TimestepEmbedding(width, channels)
    return None


class DownBlock(nn.Module):
    """One resolution of the encoder, then downsampling."""

    def __init__(self, config: AnyUNetConfig, level: int, in_channels: int) -> None:
        super().__init__()
        width, layers = config.block_out_channels[level], config.at("layers_per_block", level)
        inputs = [in_channels] + [width] * (layers - 1)
        self.resnets = nn.ModuleList(_resnet(config, channels, width) for channels in inputs)
        attends = "Attn" in config.down_block_types[level]
        self.attentions = _attentions(config, level, config.depths(level) if attends else ())
        last = level == len(config.block_out_channels) - 1
        step = [] if last else [Downsample(width, padding=config.downsample_padding)]
        self.downsamplers = nn.ModuleList(step)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> list[Tensor]:
        """[B,in,H,W] → the states for the skip connections; the last is the next block's input."""
        states: list[Tensor] = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, time)
            x = x if attention is None else attention(x, context)
            states.append(x)
        for downsample in self.downsamplers:
            states.append(downsample(x))
        return states


class MidBlock(nn.Module):
    """The coarsest resolution: attention between two residual blocks, or one block alone."""

    def __init__(self, config: AnyUNetConfig) -> None:
        super().__init__()
        width, level = config.block_out_channels[-1], len(config.block_out_channels) - 1
        depths = config.depths(level)[:1] if config.mid_attention else ()
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in (None, *depths))
        self.attentions = _attentions(config, level, depths, middle=True)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor | None,
        perturbed: Sequence[Perturbation | None] = (),
    ) -> Tensor:
        """[B,C,H,W] → [B,C,H,W]; `perturbed` as in `UNet.forward`."""
        first, *rest = self.resnets
        instead = [*replaced(perturbed, x)]
        x = first(x, time)
        for attention, resnet in zip(self.attentions, rest, strict=True):
            x = resnet(attention(x, context, instead), time)
        return x


class UpBlock(nn.Module):
    """One resolution of the decoder, with skip connections, then upsampling.

    skips: the channels of the skip connections, in the order of their use.
    """

    def __init__(
        self, config: AnyUNetConfig, level: int, in_channels: int, skips: list[int]
    ) -> None:
        super().__init__()
        width, layers = config.block_out_channels[level], len(skips)
        inputs = [in_channels] + [width] * (layers - 1)
        self.resnets = nn.ModuleList(
            _resnet(config, channels + skip, width)
            for channels, skip in zip(inputs, skips, strict=True)
        )
        attends = "Attn" in config.up_block_types[::-1][level]
        depths = config.depths(level, up=True) if attends else ()
        self.attentions = _attentions(config, level, depths)
        self.upsamplers = nn.ModuleList([Upsample(width)] if level else [])

    def forward(
        self,
        x: Tensor,
        states: list[Tensor],
        time: Tensor,
        context: Tensor | None,
        first: int = 0,
        end: int | None = None,
    ) -> Tensor:
        """[B,in,H,W] → [B,out,H',W']; pops its skip connections from the end of `states`.

        first, end: of the layers to compute, all of them by default.
        """
        layers = zip_longest(self.resnets, self.attentions)
        for resnet, attention in islice(layers, first, end):
            x = resnet(torch.cat([x, states.pop()], dim=1), time)
            x = x if attention is None else attention(x, context)
        for upsample in self.upsamplers:
            # Downsampling rounded odd sizes; the next skip connection has the original size.
            x = upsample(x, states[-1].shape[2:])
        return x


class UNetEncoder(nn.Module):
    """The encoder and middle block of a U-Net, shared with ControlNets."""

    config: AnyUNetConfig

    def __init__(self, config: AnyUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.add_embedding = _added(config)
        classes = config.num_class_embeds
        self.class_embedding = nn.Embedding(classes, 4 * widths[0]) if classes else None
        self.down_blocks = nn.ModuleList(
            DownBlock(config, level, widths[max(level - 1, 0)]) for level in range(len(widths))
        )
        self.mid_block = MidBlock(config) if config.mid_block_type else None

    @property
    def skips(self) -> list[int]:
        """The channels of each state that `down` returns."""
        widths = self.config.block_out_channels
        skips = [widths[0]]
        for level, width in enumerate(widths):
            steps = self.config.at("layers_per_block", level) + (level < len(widths) - 1)
            skips += [width] * steps
        return skips

    def embed(self, timestep: Tensor, cond: Conditioning, dtype: torch.dtype) -> Tensor:
        """The embedding [B,4C] of the time step, class, size ids and pooled text.

        Raises UndustError for a missing condition.
        """
        waves = sinusoids(
            timestep,
            self.config.block_out_channels[0],
            cos_first=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        time = self.time_embedding(waves.to(dtype))
        if isinstance(self.add_embedding, TokenEmbedding):
            time = time + self.add_embedding(cond.text)
        elif self.add_embedding is not None:
            added = self._added_vector(cond)
            time = time + self.add_embedding(added.to(dtype))
        if self.class_embedding is not None:
            labels = cond.labels(self.class_embedding.num_embeddings)
            time = time + self.class_embedding(labels)
        # Every block would activate the embedding before its own projection.
        return F.silu(time)

    def down(self, x: Tensor, time: Tensor, context: Tensor | None) -> list[Tensor]:
        """The output of `conv_in` [B,C,H,W] → it and all states for the skip connections."""
        states = [x]
        for block in self.down_blocks:
            states += block(states[-1], time, context)
        return states

    def _added_vector(self, cond: Conditioning) -> Tensor:
        """Pooled text [B,P], if taken, and sinusoids of the size ids [B,N] → [B,P+N·channels]."""
        config, sizes, pooled = self.config, cond.size_ids, cond.pooled
        assert not isinstance(config, UNet2DConfig)
        channels = config.addition_time_embed_dim or 0
        width = config.projection_class_embeddings_input_dim
        needed = "pooled text and size ids"
        if isinstance(config, SpatioTemporalUNetConfig):
            needed = "size ids (frame rate, motion and noise)"
            pooled = None if sizes is None else sizes.new_empty(len(sizes), 0)
        if pooled is None or sizes is None or pooled.shape[1] + sizes.shape[1] * channels != width:
            raise UndustError(
                f"this network needs {needed} of {width} channels together, {channels} for each id"
            )
        waves = sinusoids(
            sizes.flatten(),
            channels,
            cos_first=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        return torch.cat([pooled, waves.reshape(len(sizes), -1).to(pooled)], dim=1)


class AnyUNet(UNetEncoder, DenoiserNetwork):
    """Noisy latents, time steps and conditions to a prediction, by either kind of U-Net."""

    config: AnyUNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: AnyUNetConfig) -> None:
        super().__init__(config)
        widths, skips = config.block_out_channels, self.skips
        self.up_blocks = nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(len(widths))):
            taken = [skips.pop() for _ in range(config.at("layers_per_block", level) + 1)]
            self.up_blocks.append(UpBlock(config, level, channels, taken))
            channels = widths[level]
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Conditioning,
        *,
        perturbed: Sequence[Perturbation | None] = (),
        control: Sequence[Tensor] = (),
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """Latents [B,C,H,W] at time steps [B] under conditions → [B,C,H,W].

        cond: text; pooled text and size ids for addition_embed_type "text_time"; label for
        num_class_embeds; extra_channels for input channels beyond the latents'; perturbed: for each
        picture, the replacement of self-attention in the middle block (Ahn et al. 2024, Hong 2024),
        or None; control: tensors added to each skip connection and, the last, to the middle block's
        output (Zhang et al. 2023, fig. 3), or (); deep: the features that enter the last decoder
        layer, which then is computed alone with the first convolution (Ma et al. 2023, their branch
        0), or if it has none, set by this call. Raises UndustError for a perturbation without such
        a block, a missing condition and a control of other shapes.
        """
        time, context = self.embed(timestep, cond, x.dtype), cond.text
        x = self.conv_in(cond.network_input(x))
        last = self.up_blocks[-1]
        begin = self.config.at("layers_per_block", 0)  # the last layer
        if deep is None or deep.features is None:
            *states, x = self._deep(x, time, context, perturbed, control)
            x = last(x, states, time, context, end=begin)
            if deep is not None:
                deep.features, deep.control = x, control[:1]
        else:
            states = [x + each for each in deep.control] or [x]
            x = deep.features
        x = last(x, states, time, context, first=begin)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _deep(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor | None,
        perturbed: Sequence[Perturbation | None],
        control: Sequence[Tensor],
    ) -> list[Tensor]:
        """The output of `conv_in` → the last block's skip connections and, last, its input."""
        states = self.down(x, time, context)
        x = states[-1]
        if any(perturbed) and not (self.mid_block and self.mid_block.attentions):
            raise UndustError("this U-Net has no attention in a middle block to perturb")
        if self.mid_block is not None:
            x = self.mid_block(x, time, context, perturbed)
        if control:
            *states, x = _controlled([*states, x], control)
        for block in [*self.up_blocks][:-1]:
            x = block(x, states, time, context)
        return [*states, x]

    def start_at_zero(self) -> None:
        """Initialises the end of every residual branch, and the output, to zero, for training.

        Dhariwal and Nichol 2021 (`zero_module`): blocks then start as identities.
        """
        for module in self.modules():
            for name in ("conv2", "proj_out", "conv_out"):
                for parameter in getattr(module, name, nn.Identity()).parameters():
                    nn.init.zeros_(parameter)


class UNet(AnyUNet):
    """The U-Net with cross-attention to text; keys as UNet2DConditionModel's."""

    config: UNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]


class UNet2D(AnyUNet):
    """The U-Net without text (Ho et al. 2020, Dhariwal & Nichol 2021); keys as UNet2DModel's."""

    config: UNet2DConfig  # pyright: ignore[reportIncompatibleVariableOverride]


def _controlled(states: list[Tensor], control: Sequence[Tensor]) -> list[Tensor]:
    """The states plus the control."""
    if len(control) != len(states):
        raise UndustError(f"the control has {len(control)} tensors; this U-Net takes {len(states)}")
    for number, (state, part) in enumerate(zip(states, control, strict=True)):
        if part.shape != state.shape:
            raise UndustError(
                f"tensor {number} of the control has shape {list(part.shape)}; "
                f"this U-Net takes {list(state.shape)}"
            )
    return [state + part for state, part in zip(states, control, strict=True)]
