from __future__ import annotations

import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from undust.diffusion.guidance import ClassifierFree, Rescaled
from undust.diffusion.prediction import PREDICTIONS
from undust.errors import UndustError

OUTPUTS = ["epsilon", "sample", "v_prediction"]


def output(name: str, x0, world):
    """The output that stands for x0 in each prediction, from its definition."""
    sigma = world.sigma[:, None, None, None]
    epsilon = (world.x - x0) / sigma
    v = (epsilon - sigma * x0) / (1 + sigma**2).sqrt()
    return {"epsilon": epsilon, "sample": x0, "v_prediction": v}[name]


def test_share_zero_is_nothing_to_the_bit(bent):
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 5.0)
    rescaled = Rescaled(guided, guided.positive, 0.0)
    assert torch.equal(rescaled(bent.x, bent.sigma), guided(bent.x, bent.sigma))
    assert bent.calls == [6, 6]


@pytest.mark.parametrize("name", OUTPUTS)
def test_all_of_it_is_the_unguided_contrast(world, name: str):
    guided = ClassifierFree(world.branch(1), world.branch(2), 5.0)
    rescaled = Rescaled(guided, guided.positive, 1.0, PREDICTIONS[name])(world.x, world.sigma)
    assert world.calls == [6]
    plain = guided.positive(world.x, world.sigma)
    ours, wanted = (output(name, x0, world).flatten(1).std(1) for x0 in (rescaled, plain))
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("share", [0.25, 0.7, 1.0])
@pytest.mark.parametrize("name", OUTPUTS)
def test_it_agrees_with_diffusers(bent, name: str, share: float):
    """Theirs takes the network's output as it comes."""
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 5.0)
    ours = Rescaled(guided, guided.positive, share, PREDICTIONS[name])(bent.x, bent.sigma)
    theirs = rescale_noise_cfg(
        output(name, guided(bent.x, bent.sigma), bent),
        output(name, guided.positive(bent.x, bent.sigma), bent),
        share,
    )
    torch.testing.assert_close(output(name, ours, bent), theirs, rtol=1e-5, atol=1e-5)


def test_an_output_without_contrast_stays(world):
    flat = world.asked(torch.zeros(2, 4, 5).double())
    world.x = torch.zeros_like(world.x)
    rescaled = Rescaled(flat, world.branch(1), 1.0)(world.x, world.sigma)
    assert torch.equal(rescaled, world.x)


def test_shares_that_make_no_sense(bent):
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UndustError, match=r"rescale: .* is outside 0"):
            Rescaled(bent.branch(1), bent.branch(1), share)
