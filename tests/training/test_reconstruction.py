"""The reconstruction loss against its formula, and against the published sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from undust.networks.features.base import FeatureNetwork
from undust.networks.features.perceptual import PerceptualDistance
from undust.training.losses import gradient_difference
from undust.training.reconstruction import ReconstructionLoss, ReconstructionLossConfig


class TwoLayers(FeatureNetwork):
    """A small feature network with random weights."""

    name, side = "two layers", None

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3, stride=2)])

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.layers[0](x).tanh()
        return first, self.layers[1](first).tanh()

    def pooled(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].mean((2, 3))


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = 2 * torch.rand(2, 4, 3, 16, 16, generator=generator, dtype=torch.float64) - 1
    return x, y


def loss(**fields: object) -> ReconstructionLoss:
    return ReconstructionLoss(ReconstructionLossConfig.model_validate(fields)).double()


@pytest.mark.parametrize("pixel", ["l1", "l2", "none"])
def test_pixels_edges_features_and_variance(pixel: str):
    """In float64, from the definitions (Zhang et al. 2018, eq. 1)."""
    torch.manual_seed(0)
    x, y = pictures()
    ours = loss(pixel=pixel, edges=0.3, scales=2, learned_variance=True)
    features = TwoLayers().double()
    ours.perceptual.append(PerceptualDistance(features))
    ours.config = ours.config.model_copy(update={"perceptual": 0.8})
    with torch.no_grad():
        ours.log_variance.fill_(-0.4)
    found, terms = ours(y, x)
    distances = []
    for of_x, of_y in zip(features.maps(x), features.maps(y), strict=True):
        units = [each / each.square().sum(1, keepdim=True).sqrt() for each in (of_x, of_y)]
        distances.append((units[0] - units[1]).square().sum(1).mean((1, 2)))
    perceptual = torch.stack(distances).sum(0).mean()
    pixels = {"l1": (x - y).abs(), "l2": (x - y).square(), "none": 0 * x}[pixel].mean()
    error = pixels + 0.3 * gradient_difference(y, x, 2) + 0.8 * perceptual
    expected = error / torch.tensor(-0.4).double().exp() - 0.4
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["perceptual"].double(), perceptual, rtol=1e-6, atol=0)
    assert ("pixel" in terms) == (pixel != "none")
    assert not [name for name, _ in ours.named_parameters() if name != "log_variance"]


def test_the_published_sums_are_these_means_times_the_numbers_of_a_picture():
    """CompVis' LPIPSWithDiscriminator: sums over elements, divided by the batch; kl = 1e-6."""
    x, y = pictures()
    mean, logvar = torch.randn(2, 4, 4, 2, 2, dtype=torch.float64)
    ours = loss(edges=0, learned_variance=True, kl=1e-6 * mean[0].numel() / x[0].numel())
    with torch.no_grad():
        ours.log_variance.fill_(0.2)
    sums = ((x - y).abs() / ours.log_variance.exp() + ours.log_variance).sum() / len(x)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    unit = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(posterior, unit)
    published = sums + 1e-6 * kl.sum() / len(x)
    found = ours(y, x)[0] + ours.config.weighted({"kl": kl.mean(), "active_channels": kl.sum()})
    torch.testing.assert_close(published, found * x[0].numel())


def test_the_feature_network_is_named(tmp_path):
    from undust.formats import safetensors_file
    from undust.networks.features.efficientnet import EfficientNetLite0

    torch.manual_seed(0)
    path = tmp_path / "features.safetensors"
    safetensors_file.save(path, EfficientNetLite0().state_dict())
    ours = ReconstructionLoss(
        ReconstructionLossConfig(perceptual=1.0, perceptual_network=str(path))
    )
    assert "EfficientNet-Lite0" in ours.notes[0]
    x = torch.zeros(2, 3, 32, 32)
    assert "perceptual" in ours(x, x)[1]
    assert not ours.state_dict()
