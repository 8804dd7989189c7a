from __future__ import annotations

import pytest
import torch
from diffusers import VQModel

from undust.networks.config import VQConfig
from undust.networks.vq import VQAutoencoder

TINY = {"block_out_channels": (16, 32), "norm_num_groups": 8, "num_vq_embeddings": 64}
LAYOUTS = {
    "VQ-f4, scaled down": {"block_out_channels": (16, 32, 48), "layers_per_block": 2},
    "codes narrower than the latent": {"latent_channels": 8, "vq_embed_dim": 3},
    "f1, one channel of colour, without attention": {
        "block_out_channels": (16,),
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 1,
        "mid_block_add_attention": False,
    },
    "attention at the coarser levels": {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("DownEncoderBlock2D", *("AttnDownEncoderBlock2D",) * 2),
        "up_block_types": (*("AttnUpDecoderBlock2D",) * 2, "UpDecoderBlock2D"),
    },
    "f32, 64 channels": {"block_out_channels": (16,) * 6, "latent_channels": 64},
}


def pair(shake, **changes) -> tuple[VQAutoencoder, VQModel]:
    fields = VQConfig(**{**TINY, **changes}).model_dump(mode="json")
    theirs = VQModel.from_config(fields).eval()
    shake(theirs)
    ours = VQAutoencoder(VQConfig.read(dict(theirs.config)))
    assert ours.config.model_dump(mode="json") == fields
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_with_diffusers(layout, shake, assert_close) -> None:
    """Latents before quantisation, codes and pictures."""
    ours, theirs = pair(shake, **LAYOUTS[layout])
    side = 2 * ours.downsampling_factor
    x = 2 * torch.rand(3, ours.config.in_channels, side, side + ours.downsampling_factor) - 1
    latents = ours.encode(x)
    assert_close(latents.mean, theirs.encode(x).latents)
    assert (latents.logvar == -torch.inf).all()
    z = latents.mean + 0.3 * torch.randn_like(latents.mean)
    codes, _, (_, _, index) = theirs.quantize(z)
    assert torch.equal(ours.quantize.nearest(z).flatten(), index)
    assert_close(ours.quantize(ours.quantize.nearest(z)), codes)
    picture = ours.decode(z)
    assert_close(picture, theirs.decode(z).sample)
    assert picture.shape == x.shape


def test_codes_are_the_nearest(shake) -> None:
    """Also of latents that are compared in several parts, and in half precision."""
    ours, _ = pair(shake)
    z = torch.randn(2, 3, 70, 80)
    distances = torch.cdist(
        z.double().movedim(1, -1).reshape(-1, 3), ours.quantize.embedding.weight.double()
    )
    index = ours.quantize.nearest(z).flatten()
    chosen = distances.gather(1, index[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.min(1).values, atol=1e-6, rtol=0)
    half = ours.half()
    assert torch.equal(half.quantize.nearest(z.half()), half.float().quantize.nearest(z.half()))


def test_large_pictures_are_streamed_to_the_same(shake, assert_close) -> None:
    ours, _ = pair(shake, **LAYOUTS["attention at the coarser levels"])
    x = 2 * torch.rand(2, 3, 40, 36) - 1
    assert_close(ours.encode(x, streamed=True).mean, ours.encode(x).mean)
    z = ours.encode(x).mean
    assert_close(ours.decode(z, streamed=True), ours.decode(z))


def test_scaled_latents_of_the_published_model() -> None:
    ours = VQAutoencoder(VQConfig(**TINY, scaling_factor=0.5))
    assert ours.latent_space == (3, 2, 0.5, 0.0)
    assert ours.scale(torch.zeros(1)) == (0.5, 0.0)
