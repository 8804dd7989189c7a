"""ControlNet (Zhang et al. 2023): a copy of a U-Net's encoder, conditioned on a picture."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.attention import TransformerBlock
from undust.networks.conditioning import Conditioning
from undust.networks.config import ControlNetConfig
from undust.networks.unet import UNet, UNetEncoder


class HintEmbedding(nn.Module):
    """Strided convolutions from a picture to features of the latent's size (section 3.3)."""

    def __init__(self, channels: int, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, wider, 3, padding=1, stride=2))
        self.conv_out = _zero(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def keep_variance(self) -> None:
        """Initialises all convolutions but the last so that features are as large as the hint.

        He et al. 2015, eq. 10. With torch's own initialisation each layer makes them 2 to 3 times
        smaller, and the ControlNet follows its hints later.
        """
        for convolution in (self.conv_in, *self.blocks):
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)

    def forward(self, hint: Tensor) -> Tensor:
        """[B,3,H,W] → [B,out,H/2ⁿ,W/2ⁿ] for n + 1 widths."""
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(UNetEncoder):
    """A hint and the U-Net's inputs to residuals for the U-Net; keys as ControlNetModel's.

    The output convolutions are initialised to zero, so a new one adds nothing (section 3.1).
    """

    config: ControlNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        self.bgr = config.controlnet_conditioning_channel_order == "bgr"
        self.pools = config.global_pool_conditions
        self.controlnet_cond_embedding = HintEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        self.controlnet_down_blocks = nn.ModuleList(
            _zero(nn.Conv2d(width, width, 1)) for width in self.skips
        )
        self.controlnet_mid_block = _zero(nn.Conv2d(widths[-1], widths[-1], 1))

    @property
    def scale(self) -> int:
        """Pixels of the hint along a side for one latent pixel."""
        return 2 ** (len(self.controlnet_cond_embedding.blocks) // 2)

    def forward(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, hint: Tensor
    ) -> list[Tensor]:
        """The `control` of a U-Net with the same inputs, unscaled.

        hint: a picture [B,3,8H,8W] in [0, 1], or [1,3,8H,8W] for all; the rest as in
        `UNet.forward`, but extra channels are ignored.
        Raises UndustError for a hint of another size and for a missing condition.
        """
        size = [length * self.scale for length in x.shape[2:]]
        if list(hint.shape[1:]) != [3, *size] or len(hint) not in (1, len(x)):
            raise UndustError(
                f"a hint of the shape {list(hint.shape)} does not fit {len(x)} latents, "
                f"which take {[len(x), 3, *size]}"
            )
        time, context = self.embed(timestep, cond, x.dtype), cond.text
        seen = self.controlnet_cond_embedding(hint.flip(1) if self.bgr else hint)
        states = self.down(self.conv_in(x) + seen, time, context)
        middle = states[-1]
        if self.mid_block is not None:
            middle = self.mid_block(middle, time, context)
        control = [
            block(state) for block, state in zip(self.controlnet_down_blocks, states, strict=True)
        ]
        control.append(self.controlnet_mid_block(middle))
        if self.pools:
            control = [part.mean((2, 3), keepdim=True).expand_as(part) for part in control]
        return control


def from_unet(unet: UNet, factor: int = 8) -> ControlNet:
    """A ControlNet to train for a U-Net, with the U-Net's weights and zero output.

    factor: pixels of the hint along a side for one latent pixel. Raises UndustError unless it is a
    power of 2.
    """
    halvings = factor.bit_length() - 1
    if factor != 2**halvings:
        raise UndustError(f"ControlNets are for latents 2, 4, 8, … times smaller, not {factor}")
    config = ControlNetConfig.of(unet.config)
    widths = config.conditioning_embedding_out_channels
    widths = (*widths, *widths[-1:] * halvings)[: halvings + 1]
    config = config.model_copy(update={"conditioning_embedding_out_channels": widths})
    network = ControlNet(config).to(unet.conv_in.weight)
    own, given = network.state_dict(), unet.state_dict()
    network.load_state_dict({name: given.get(name, tensor) for name, tensor in own.items()})
    network.controlnet_cond_embedding.keep_variance()
    return network


def check_fits(network: ControlNet, unet: nn.Module) -> None:
    """Raises UndustError for a ControlNet that was made for another network than one like this."""
    if not isinstance(unet, UNet):
        raise UndustError(f"ControlNets are for U-Nets; this model has a {type(unet).__name__}")
    for what, ours, theirs in (
        ("texts as wide as", _text_widths(network) or _text_widths(unet), _text_widths(unet)),
        ("levels as wide as", network.skips, unet.skips),
        ("pooled text and size ids of", _added_width(network), _added_width(unet)),
    ):
        if ours != theirs:
            raise UndustError(
                f"the ControlNet is for another kind of model: it takes {what} {ours}, "
                f"this U-Net {theirs}"
            )


def _text_widths(network: UNet | ControlNet) -> list[int]:
    """The widths of the text in cross-attention."""
    blocks = (block for block in network.modules() if isinstance(block, TransformerBlock))
    return sorted({block.attn2.to_k.in_features for block in blocks})


def _added_width(network: UNet | ControlNet) -> int | None:
    """The width of the pooled text and the size ids together."""
    kind = network.config.addition_embed_type
    return network.config.projection_class_embeddings_input_dim if kind == "text_time" else None


def _zero(convolution: nn.Conv2d) -> nn.Conv2d:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
