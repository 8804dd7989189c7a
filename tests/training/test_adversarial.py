"""Both sides of the adversarial loss: their values, and gradients that are kept apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undust.errors import UndustError
from undust.training.adversarial import WINDOW, Adversary, DiscriminatorConfig
from undust.training.configs import OptimizerConfig


def adversary(steps: int = 100, **fields: object) -> Adversary:
    torch.manual_seed(0)
    config = {"weight": 0.7, "start": 10, "layers": 1, "channels": 8, "norm": "group", **fields}
    return Adversary(DiscriminatorConfig.model_validate(config), 16, steps)


@pytest.fixture
def pictures() -> tuple[torch.Tensor, nn.Conv2d, torch.Tensor]:
    """Real pictures, the last layer of a decoder, and its reconstructions."""
    torch.manual_seed(1)
    real, last = torch.rand(4, 3, 16, 16) * 2 - 1, nn.Conv2d(3, 3, 3, padding=1)
    return real, last, last(real)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_sum_and_its_gradients(pictures, adaptive: bool):
    """Those of the decoder and of the discriminator alone, each computed by itself."""
    real, last, fake = pictures
    ours = adversary(adaptive=adaptive)
    likelihood = (fake - real).abs().mean()
    total, terms = ours.losses(real, fake, likelihood, last.weight, 10)
    total.backward()
    network = ours.network
    given = [p.grad.clone() for p in (*last.parameters(), *network.parameters())]
    # The decoder's side: the discriminator is a constant.
    deceived = -network(last(real)).mean()
    weight = terms["adversarial_weight"]
    of_decoder = torch.autograd.grad(weight * deceived, [*last.parameters()])
    # The discriminator's side: the reconstructions are constants.
    logits = network(real), network(fake.detach())
    own = ((1 - logits[0]).clamp(min=0).mean() + (1 + logits[1]).clamp(min=0).mean()) / 2
    of_network = torch.autograd.grad(own, [*network.parameters()])
    for found, expected in zip(given, (*of_decoder, *of_network), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(total, weight * deceived + own)
    torch.testing.assert_close(terms["discriminator"], own)
    if not adaptive:
        assert weight == pytest.approx(0.7)


def test_nothing_before_the_start_nor_on_small_pictures(pictures):
    real, last, fake = pictures
    ours = adversary()
    for step, x, y in ((9, real, fake), (10, real[..., :5], fake[..., :5])):
        total, terms = ours.losses(x, y, y.mean(), last.weight, step)
        assert (total, terms) == (0, {})
        total.backward()
        assert all((p.grad == 0).all() for p in ours.network.parameters())


def test_pictures_have_to_be_large_enough():
    with pytest.raises(UndustError, match="layers = 3 needs pictures of at least 24 pixels, not 1"):
        adversary(layers=3)
    adversary(layers=2)


def test_start_as_a_share_and_an_own_learning_rate():
    assert adversary(steps=1000, start=0.3).first_step == 300
    shared = OptimizerConfig(kind="muon", learning_rate=1e-3, betas=(0.5, 0.9))
    own = DiscriminatorConfig(learning_rate=2e-4).optimizer(shared)
    assert own == OptimizerConfig(learning_rate=2e-4, betas=(0.5, 0.9))
    assert DiscriminatorConfig().optimizer(shared).learning_rate == 1e-3


def test_faults_in_one_line():
    assert not adversary(steps=11).never_starts()
    assert "never starts: discriminator.start is step 10" in adversary(steps=10).never_starts()
    ours = adversary()
    assert not ours.has_won(10 + WINDOW, 0.2)
    assert not ours.has_won(9 + WINDOW, 0.0)
    assert "the discriminator has won" in ours.has_won(10 + WINDOW, 0.01)
