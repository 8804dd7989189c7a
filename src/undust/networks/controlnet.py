"""ControlNet (Zhang et al. 2023): a copy of a U-Net's encoder half that shows it a picture."""

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
    """A picture to features as large as the latent, by strided convolutions (section 3.3)."""

    def __init__(self, channels: int, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, wider, 3, padding=1, stride=2))
        self.conv_out = _zero(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        """[B,3,H,W] → [B,out,H/2ⁿ,W/2ⁿ], n being the number of widths without the first."""
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(UNetEncoder):
    """A hint, beside what the U-Net gets, to what is added to it; keys as ControlNetModel's.

    A new one adds nothing: its convolutions out are zeros, and training moves them (section 3.1).
    """

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
        """Pixels of the hint to one of the latent."""
        return 2 ** (len(self.controlnet_cond_embedding.blocks) // 2)

    def forward(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, hint: Tensor
    ) -> list[Tensor]:
        """What a U-Net of the same inputs takes as `control`, unscaled.

        hint: a picture [B,3,8H,8W] in [0, 1], or [1,3,8H,8W] for all; the rest as `UNet.forward`,
        of which the extra channels are not looked at.
        Raises UndustError for a hint of another size, and for what it needs and is not given.
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


def from_unet(unet: UNet) -> ControlNet:
    """A ControlNet for a U-Net, to be trained: its weights are the U-Net's, and it adds nothing."""
    network = ControlNet(ControlNetConfig.of(unet.config)).to(unet.conv_in.weight)
    own, given = network.state_dict(), unet.state_dict()
    network.load_state_dict({name: given.get(name, tensor) for name, tensor in own.items()})
    return network


def check_fits(network: ControlNet, unet: nn.Module) -> None:
    """Raises UndustError for a ControlNet that was made for another network than one like this."""
    if not isinstance(unet, UNet):
        raise UndustError(f"ControlNets are for U-Nets; this model has a {type(unet).__name__}")
    for what, ours, theirs in (
        ("texts as wide as", _seen(network) or _seen(unet), _seen(unet)),
        ("levels as wide as", network.skips, unet.skips),
        ("a text and sizes that come to", _beside(network), _beside(unet)),
    ):
        if ours != theirs:
            raise UndustError(
                f"the ControlNet is for another kind of model: it takes {what} {ours}, "
                f"this U-Net {theirs}"
            )


def _seen(network: UNetEncoder) -> list[int]:
    """The widths of the texts that its attention sees."""
    blocks = (block for block in network.modules() if isinstance(block, TransformerBlock))
    return sorted({block.attn2.to_k.in_features for block in blocks})


def _beside(network: UNetEncoder) -> int | None:
    """The width of what it is told beside the time step."""
    kind = network.config.addition_embed_type
    return network.config.projection_class_embeddings_input_dim if kind == "text_time" else None


def _zero(convolution: nn.Conv2d) -> nn.Conv2d:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
