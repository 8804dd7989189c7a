"""Mean and deviation of latents, folded into weights, and judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from undust.errors import UndustError
from undust.latent.first_stage import FirstStage
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig, VQConfig
from undust.networks.vq import VQAutoencoder
from undust.training.latent_statistics import (
    fold_latent_stats,
    latent_statistics,
    unusual_deviation,
)

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4)


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return 2 * torch.rand(6, 3, 16, 16) - 1


@torch.no_grad()
def test_normalising_changes_the_latents_and_no_picture(x: torch.Tensor):
    autoencoder = Autoencoder(CONFIG).eval()
    before = autoencoder.encode(x)
    noise = torch.randn(before.mean.shape, generator=torch.Generator().manual_seed(1))
    pictures = autoencoder.decode(before.sample(noise))
    mean, deviation = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    fold_latent_stats(autoencoder, mean, deviation)
    after = autoencoder.encode(x)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        after.logvar, before.logvar - 2 * deviation.log()[None, :, None, None]
    )
    torch.testing.assert_close(
        autoencoder.decode(after.sample(noise)), pictures, atol=1e-4, rtol=1e-4
    )


def test_normalising_needs_the_convolutions_beside_the_latent():
    bare = Autoencoder(CONFIG.model_copy(update={"use_quant_conv": False}))
    with pytest.raises(UndustError, match="use_quant_conv"):
        fold_latent_stats(bare, torch.zeros(4), torch.ones(4))


@torch.no_grad()
def test_statistics_are_those_of_sampled_latents(x: torch.Tensor):
    autoencoder = Autoencoder(CONFIG)
    mean, deviation = latent_statistics(autoencoder, x.split(2))
    posterior = autoencoder.encode(x)
    drawn = torch.cat([posterior.sample(torch.randn_like(posterior.mean)) for _ in range(300)])
    torch.testing.assert_close(mean, drawn.mean((0, 2, 3)), atol=0.02, rtol=0)
    torch.testing.assert_close(deviation, drawn.std((0, 2, 3)), atol=0, rtol=0.02)


@torch.no_grad()
def test_codes_move_with_their_latents(x: torch.Tensor):
    """One deviation for all channels: the nearest codes, and so the pictures, stay the same."""
    vq = VQAutoencoder(VQConfig(block_out_channels=(8, 8), norm_num_groups=4))
    z = vq.encode(x).mean
    vq.quantize.embedding.weight.copy_(z.movedim(1, -1).reshape(-1, 3)[:256])
    index, pictures = vq.quantize.nearest(z), vq.decode(z)
    assert len(index.unique()) > 100
    fold_latent_stats(vq, *latent_statistics(vq, [x]))
    after = vq.encode(x).mean
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    assert after.var((0, 2, 3)).mean().sqrt().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(after.var((0, 2, 3)), z.var((0, 2, 3)) / z.var((0, 2, 3)).mean())
    same = vq.quantize.nearest(after) == index
    assert same.float().mean() > 0.99  # but for ties
    whole = same.flatten(1).all(1)
    assert whole.any()
    torch.testing.assert_close(vq.decode(after)[whole], pictures[whole], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", [0.1, 1.0, 10.0])
@torch.no_grad()
def test_a_deviation_far_from_1_is_told_with_the_right_factor(wrong: float, x: torch.Tensor):
    """The deviation is that of drawn latents, whatever scale and shift are subtracted."""
    autoencoder = Autoencoder(CONFIG)
    posterior = autoencoder.encode(x)
    drawn = torch.cat([posterior.sample(torch.randn_like(posterior.mean)) for _ in range(100)])
    right = 1 / drawn.std().item()
    fields = {"scaling_factor": right * wrong, "shift_factor": 0.3}
    autoencoder.config = CONFIG.model_copy(update=fields)
    lines = unusual_deviation(autoencoder, FirstStage(autoencoder).encode(x), Path("vae"))
    assert len(lines) == (wrong != 1)
    for line in lines:
        assert line.startswith("the scaled latents of vae have a deviation of ")
        found = float(line.split("have a deviation of ")[1].split(",")[0])
        factor = float(line.split("a scaling_factor of ")[1].split()[0])
        assert found == pytest.approx(wrong, rel=0.02)
        assert factor == pytest.approx(right, rel=0.02)
