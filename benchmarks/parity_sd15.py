"""How far the networks are from diffusers' and transformers' at Stable Diffusion 1.5's full size.

    python benchmarks/parity_sd15.py

Random weights, the same in both; float32 on the CPU; needs about 8 GB of memory and some minutes.
Prints, for each network, the norm of the difference over the norm of the peer's output, and the
same for the largest entries. Ends with an error if either is not under 1e-5.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from undust.networks.autoencoder import Autoencoder
from undust.networks.conditioning import Conditioning
from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

TOLERANCE = 1e-5
Pair = tuple[str, Tensor, Tensor]


def shaken(theirs: nn.Module) -> nn.Module:
    """Moves every weight a little: fresh norms and biases would hide being mixed up."""
    for parameter in theirs.parameters():
        parameter += 0.01 * torch.randn_like(parameter)
    return theirs.eval()


def sharing(ours: nn.Module, theirs: nn.Module, prefix: str = "") -> nn.Module:
    """Our network, built without memory, on the peer's own weights."""
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval()


def unet() -> Iterator[Pair]:
    theirs = shaken(UNet2DConditionModel(sample_size=64, cross_attention_dim=768))
    with torch.device("meta"):
        ours = UNet(UNetConfig.read(dict(theirs.config)))
    sharing(ours, theirs)
    x, timestep, context = torch.randn(1, 4, 64, 64), torch.tensor([321.0]), torch.randn(1, 77, 768)
    expected = theirs(x, timestep, encoder_hidden_states=context).sample
    yield "U-Net, 64x64 latents", ours(x, timestep, Conditioning(1, context)), expected


def autoencoder() -> Iterator[Pair]:
    widths = (128, 256, 512, 512)
    config = AutoencoderConfig(block_out_channels=widths, layers_per_block=2, sample_size=512)
    theirs = shaken(AutoencoderKL.from_config(config.model_dump()))
    with torch.device("meta"):
        ours = Autoencoder(config)
    sharing(ours, theirs)
    x, z = 2 * torch.rand(1, 3, 256, 256) - 1, torch.randn(1, 4, 32, 32)
    yield "autoencoder, encoding 256 px", ours.encode(x).mean, theirs.encode(x).latent_dist.mean
    yield "autoencoder, decoding 256 px", ours.decode(z), theirs.decode(z).sample


def text_encoder() -> Iterator[Pair]:
    fields = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    theirs = shaken(CLIPTextModel(CLIPTextConfig(**fields)))
    with torch.device("meta"):
        ours = TextEncoder(TextEncoderConfig.read(theirs.config.to_dict()))
    # transformers 5 leaves out the prefix that every published file has.
    sharing(ours, theirs, prefix="text_model.")
    ids = torch.randint(0, 49408, (2, 77))
    yield "text encoder, 77 tokens", ours(ids), theirs(ids).last_hidden_state


def main() -> int:
    torch.manual_seed(0)
    far = False
    for network in (text_encoder, autoencoder, unet):
        for name, ours, theirs in network():
            difference = ours - theirs
            norm = (difference.norm() / theirs.norm()).item()
            largest = (difference.abs().max() / theirs.abs().max()).item()
            print(f"{name:30} norm {norm:.2e}   largest {largest:.2e}", flush=True)
            far = far or not max(norm, largest) < TOLERANCE
    return int(far)


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
