from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.networks.layers import Downsample, ResnetBlock, Upsample
from undust.networks.streaming import (
    ROWS,
    Strips,
    activated,
    convolved,
    downsampled,
    held,
    kept,
    normed,
    resnet,
    streamed,
    upsampled,
)

TINY = {"block_out_channels": (16, 32, 48), "norm_num_groups": 8, "layers_per_block": 2}
LAYOUTS = {
    "three levels": {},
    "four levels, one layer": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1},
    "as wide everywhere, one group": {"block_out_channels": (8, 8), "norm_num_groups": 1},
    "without attention": {"mid_block_add_attention": False},
    "one level": {"block_out_channels": (16,)},
}
SIZES = [(1, 3), (8, 8), (25, 11), (7, 41)]  # of latents: under a strip, one, many, a rest


def build(shake, dtype: torch.dtype = torch.float32, **changes) -> Autoencoder:
    autoencoder = Autoencoder(AutoencoderConfig(**{**TINY, **changes})).requires_grad_(False)
    shake(autoencoder)
    return autoencoder.to(dtype)


def levels(picture: Tensor, expected: Tensor) -> Tensor:
    """The differences in levels of 255, for pictures that fill the range from -1 to 1."""
    return (picture - expected).abs() / expected.abs().max() * 127.5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strips_give_what_the_whole_gives(layout, size, shake) -> None:
    # In float64 all that could be left of a difference is a wrong one.
    ours = build(shake, torch.float64, **LAYOUTS[layout])
    z = torch.randn(1, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(ours.decoder.streamed(z), ours.decoder(z), rtol=1e-11, atol=1e-11)
    odd = [side * ours.downsampling_factor + ours.downsampling_factor // 2 for side in size]
    x = torch.randn(1, 3, *odd, dtype=torch.float64)
    torch.testing.assert_close(ours.encoder.streamed(x), ours.encoder(x), rtol=1e-11, atol=1e-11)


def test_parity_with_diffusers(shake, assert_close) -> None:
    ours = build(shake)
    theirs = AutoencoderKL.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict())
    z, x = torch.randn(1, 4, 21, 13), torch.rand(1, 3, 84, 52) * 2 - 1
    assert_close(ours.decoder.streamed(ours.post_quant_conv(z)), theirs.decode(z).sample)
    moments = ours.quant_conv(ours.encoder.streamed(x))
    assert_close(moments.chunk(2, dim=1)[0], theirs.encode(x).latent_dist.mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_good_in_strips(dtype, shake) -> None:
    ours = build(shake, dtype)
    z = torch.randn(1, 4, 25, 11, dtype=dtype)
    pictures = ours.decoder(z), ours.decoder.streamed(z)
    assert {picture.dtype for picture in pictures} == {dtype}
    expected = ours.double().decoder(z.double())
    whole, strips = (levels(picture.double(), expected).norm() for picture in pictures)
    assert strips < 1.2 * whole


def seams(off: Tensor, borders: range) -> float:
    """The mean difference in the two rows at every border over that in all others."""
    at = torch.zeros(off.shape[2], dtype=torch.bool)
    at[[row + side for row in borders for side in (-1, 0)]] = True
    return float(off[:, :, at].mean() / off[:, :, ~at].mean())


def test_no_seam_shows(shake) -> None:
    ours = build(shake)
    z = torch.randn(1, 4, 60, 40)
    expected = ours.decoder(z)
    off = levels(ours.decoder.streamed(z), expected)
    assert 0 < off.max() < 0.01  # two levels are allowed
    assert seams(off, range(ROWS, off.shape[2], ROWS)) < 1.25
    # What tiles would give, to see that this could fail.
    tiles = torch.cat([ours.decoder(tile) for tile in z.split(20, dim=2)], dim=2)
    off = levels(tiles, expected)
    assert off.max() > 2
    assert seams(off, range(80, 240, 80)) > 1.25


LARGE = (1, 8, 1025, 1024)


def plain(**changes) -> Autoencoder:
    fields = {"block_out_channels": (2,), "norm_num_groups": 2, "layers_per_block": 1, **changes}
    fields |= {"mid_block_add_attention": False}
    return Autoencoder(AutoencoderConfig(**fields)).requires_grad_(False)


def test_large_pictures_are_streamed_by_themselves() -> None:
    ours = plain()
    z = torch.randn(2, 4, 1025, 1024)
    expected = [ours.decoder.streamed(ours.post_quant_conv(one)) for one in z.split(1)]
    found = ours.decode(z)
    assert torch.equal(found, torch.cat(expected))
    assert found.is_contiguous()
    x = torch.randn(1, 3, 1025, 1024)
    moments = ours.encoder.streamed(x).contiguous()
    mean, _ = ours.quant_conv(moments).chunk(2, dim=1)
    assert torch.equal(ours.encode(x).mode(), mean)


def test_pictures_up_to_that_are_computed_in_one_piece() -> None:
    ours = plain()
    z = torch.randn(1, 4, 1024, 1024)
    assert torch.equal(ours.decode(z), ours.decoder(ours.post_quant_conv(z)))
    ours = plain(block_out_channels=(2, 2))  # pixels are counted, not those of the latent
    z = torch.randn(1, 4, 520, 512)
    assert torch.equal(ours.decode(z), ours.decoder.streamed(ours.post_quant_conv(z)))


def test_large_pictures_have_gradients_where_they_are_asked_for() -> None:
    ours = plain()
    z = torch.randn(1, 4, 1025, 1024)
    with torch.enable_grad():
        assert not ours.decode(z).requires_grad
        assert ours.decode(z.clone().requires_grad_()).requires_grad
        ours.requires_grad_(True)
        picture = ours.decode(z)
    assert picture.requires_grad
    assert torch.equal(picture, ours.decoder(ours.post_quant_conv(z)))


torch.manual_seed(0)
SOURCE = torch.randn(1, 4, 37, 5)
LOCAL = {
    "convolution": (nn.Conv2d(4, 3, 3, padding=1), convolved),
    "one pixel": (nn.Conv2d(4, 3, 1), convolved),
    "upsample": (Upsample(4), upsampled),
    "downsample": (Downsample(4, padding=0), downsampled),
    "padded downsample": (Downsample(4, padding=1), downsampled),
    "norm": (nn.GroupNorm(2, 4), normed),
}


@pytest.mark.parametrize("name", LOCAL)
@given(height=st.integers(2, 37), data=st.data())
def test_any_rows_are_those_of_the_whole(name, height, data) -> None:
    layer, stream = LOCAL[name]
    x = SOURCE[:, :, :height]
    expected = layer(x)
    strips = stream(layer, held(x))
    assert strips.height == expected.shape[2]
    top = data.draw(st.integers(0, strips.height - 1))
    bottom = data.draw(st.integers(top + 1, strips.height))
    torch.testing.assert_close(strips.rows(top, bottom), expected[:, :, top:bottom])


def test_a_norm_far_from_nought() -> None:
    x = torch.randn(1, 8, 70, 50) + 3000
    norm = nn.GroupNorm(2, 8)
    expected = norm.double()(x.double())
    ours = kept(activated(norm.float(), held(x)))
    # float32 holds numbers near 3000 to 1e-4 of a standard deviation; squares of them not at all.
    torch.testing.assert_close(ours.double(), nn.functional.silu(expected), rtol=0, atol=1e-3)


def test_a_picture_can_be_written_over_itself() -> None:
    x = torch.randn(1, 3, 4 * ROWS + 3, 2)
    above = nn.functional.pad(x, (0, 0, ROWS, 0))[:, :, : x.shape[2]]
    source = nn.functional.pad(x, (0, 0, ROWS, 0))
    over = source[:, :, ROWS:]  # a view: rows a strip above are those that were just computed
    moved = Strips(x.shape[2], lambda top, bottom: source[:, :, top:bottom].clone())
    assert torch.equal(kept(moved, over=over), above)


def test_a_resnet_block_leaves_what_it_was_given() -> None:
    block = ResnetBlock(8, 8, groups=4, eps=1e-6)
    x = torch.randn(1, 8, 40, 6)
    before = x.clone()
    torch.testing.assert_close(kept(resnet(block, held(x))), block(x))
    assert torch.equal(x, before)


def test_other_layers_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        streamed(nn.Linear(2, 2), held(torch.zeros(1, 2, 3, 4)))


MEMORY = """
from pathlib import Path
import torch
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig

def peak():
    return int(Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2].split()[0])

fields = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 2}
decoder = Autoencoder(AutoencoderConfig(**fields, mid_block_add_attention=False)).decoder
with torch.inference_mode():
    decoder(torch.randn(1, 4, 16, 16))
    for way in (decoder.streamed, decoder):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = peak()
        way(torch.randn(1, 4, 256, 96))
        print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="tells peaks as Linux does")
def test_strips_need_less_memory() -> None:
    said = subprocess.check_output([sys.executable, "-c", MEMORY], text=True)
    strips, whole = map(int, said.split())
    assert strips < 0.6 * whole  # 0.3 of a large picture; 0.49 was seen of this one
