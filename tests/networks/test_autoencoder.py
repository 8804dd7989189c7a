from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch.distributions import Normal, kl_divergence

from undust.networks.autoencoder import Autoencoder
from undust.networks.base import DiagonalGaussian
from undust.networks.config import AutoencoderConfig

TINY = {"block_out_channels": (16, 32, 48), "norm_num_groups": 8, "layers_per_block": 2}
LAYOUTS = {
    "stable diffusion 1.5, scaled down": {"block_out_channels": (16, 32, 48, 48)},
    "f4, one layer": {"layers_per_block": 1},
    "sixteen channels without quant_conv": {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1159,
    },
    "attention at a level of the encoder and one of the decoder": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "without attention": {"mid_block_add_attention": False},
    "one level, one channel of colour": {
        "block_out_channels": (16,),
        "in_channels": 1,
        "out_channels": 1,
    },
}


def pair(shake, **changes) -> tuple[Autoencoder, AutoencoderKL]:
    fields = AutoencoderConfig(**{**TINY, **changes}).model_dump(mode="json")
    theirs = AutoencoderKL.from_config(fields).eval()
    shake(theirs)
    ours = Autoencoder(AutoencoderConfig.read(dict(theirs.config)))
    assert ours.config.model_dump(mode="json") == fields
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(32, 32), (37, 43)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoding_parity_with_diffusers(layout, size, shake, assert_close) -> None:
    ours, theirs = pair(shake, **LAYOUTS[layout])
    x = 2 * torch.rand(3, ours.config.in_channels, *size) - 1
    posterior, expected = ours.encode(x), theirs.encode(x).latent_dist
    assert_close(posterior.mean, expected.mean)
    assert_close(posterior.logvar, expected.logvar)
    assert_close(posterior.mode(), expected.mode())
    assert_close(posterior.kl(), expected.kl())


@pytest.mark.parametrize("size", [(8, 8), (5, 7)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoding_parity_with_diffusers(layout, size, shake, assert_close) -> None:
    ours, theirs = pair(shake, **LAYOUTS[layout])
    z = torch.randn(3, ours.config.latent_channels, *size)
    picture = ours.decode(z)
    assert_close(picture, theirs.decode(z).sample)
    assert picture.shape[2:] == tuple(ours.downsampling_factor * side for side in size)


def test_channels_last_gives_the_same_and_stays(shake, assert_close) -> None:
    ours, _ = pair(shake)
    x = 2 * torch.rand(2, 3, 32, 40) - 1
    z = ours.encode(x).mode()
    expected = ours.decode(z)
    ours.to(memory_format=torch.channels_last)
    latent = ours.encode(x.to(memory_format=torch.channels_last)).mode()
    assert_close(latent, z)
    output = ours.decode(z.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert_close(output, expected)


def test_posterior_is_the_normal_distribution_it_says(assert_close) -> None:
    mean, logvar = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    posterior, normal = DiagonalGaussian(mean, logvar), Normal(mean, (logvar / 2).exp())
    assert_close(posterior.kl(), kl_divergence(normal, Normal(0.0, 1.0)).sum(dim=(1, 2, 3)))
    noise = torch.randn_like(mean)
    assert_close((posterior.sample(noise) - normal.mean) / normal.stddev, noise)


def test_extreme_variances_are_bounded(shake) -> None:
    ours, _ = pair(shake)
    for bias, bound in ((1e4, 20.0), (-1e4, -30.0)):
        ours.quant_conv.bias.fill_(bias)
        assert (ours.encode(torch.zeros(1, 3, 8, 8)).logvar == bound).all()


def test_what_is_called_is_what_is_compiled(shake) -> None:
    ours, _ = pair(shake)
    ours.compile()
    assert ours.encoder._compiled_call_impl is not None
    assert ours.decoder._compiled_call_impl is not None


def test_last_layer_is_the_last(shake) -> None:
    ours, _ = pair(shake)
    ours.last_layer.zero_()
    picture = ours.decode(torch.randn(1, 4, 4, 4))
    assert torch.equal(picture, ours.decoder.conv_out.bias[None, :, None, None].expand_as(picture))
