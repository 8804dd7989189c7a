from __future__ import annotations

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from undust.diffusion.guidance import ClassifierFree, GuidedRun, Projected
from undust.diffusion.guidance.projected import along
from undust.errors import UndustError


def test_plain_settings_are_classifier_free_guidance_to_the_bit(bent):
    parts = bent.branch(1), bent.branch(2)
    plain = ClassifierFree(*parts, 6.0)(bent.x, bent.sigma)
    assert torch.equal(Projected(*parts, 6.0, eta=1.0)(bent.x, bent.sigma), plain)
    one = Projected(*parts, 1.0, eta=0.0, norm=0.1, momentum=-0.5)
    bent.calls.clear()
    assert torch.equal(one(bent.x, bent.sigma), parts[0](bent.x, bent.sigma))
    assert bent.calls == [3, 3]


def test_nothing_is_added_along_the_conditional_estimate(bent):
    """Sadat et al. 2024: with η = 0 the push is at a right angle to it, in every picture."""
    parts = bent.branch(1), bent.branch(2)
    positive = parts[0](bent.x, bent.sigma)
    push = Projected(*parts, 8.0)(bent.x, bent.sigma) - positive
    inner = (push * positive).flatten(1).sum(1)
    assert (
        inner.abs() < 1e-5 * push.flatten(1).norm(dim=1) * positive.flatten(1).norm(dim=1)
    ).all()
    assert push.abs().max() > 0.1


def test_the_push_is_at_most_as_long_as_the_norm(bent):
    parts = bent.branch(1), bent.branch(2)
    positive = parts[0](bent.x, bent.sigma)
    lengths = (
        (Projected(*parts, 2.0, 1.0, 0.3)(bent.x, bent.sigma) - positive).flatten(1).norm(dim=1)
    )
    torch.testing.assert_close(lengths, torch.full((3,), 0.3))
    far = Projected(*parts, 2.0, 1.0, 1e6)(bent.x, bent.sigma)
    torch.testing.assert_close(far, ClassifierFree(*parts, 2.0)(bent.x, bent.sigma))


def test_a_projection_in_the_plane():
    x, direction = torch.tensor([[3.0, 4.0]] * 2), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert along(x, direction).tolist() == [[3.0, 0.0], [0.0, 0.0]]


SETTINGS = [
    (0.0, None, 0.0),
    (0.3, 0.7, 0.0),
    (1.0, 2.0, -0.5),
    (0.0, 0.4, -0.75),
    (1.0, None, 0.5),
]


@pytest.mark.parametrize(("eta", "norm", "momentum"), SETTINGS)
def test_a_run_agrees_with_diffusers(bent, eta: float, norm: float | None, momentum: float):
    parts = bent.branch(1), bent.branch(2)
    buffer = MomentumBuffer(momentum)
    run = GuidedRun(Projected(*parts, 5.0, eta, norm, momentum))
    for level in (4.0, 1.0, 0.3):
        sigma = torch.full((3,), level)
        theirs = normalized_guidance(
            parts[0](bent.x, sigma),
            parts[1](bent.x, sigma),
            4.0,
            buffer if momentum else None,
            eta,
            norm or 0.0,
            use_original_formulation=True,
        )
        torch.testing.assert_close(run(bent.x, sigma), theirs, rtol=1e-5, atol=1e-5)


def test_momentum_is_the_sum_of_what_was_pushed_before(world):
    """Between two Gaussians Δ is the same whatever x is: after K calls it is Δ·Σ momentum^k."""
    p, n = world.mean(1), world.mean(2)
    guidance = Projected(world.asked(p), world.asked(n), 3.0, 1.0, None, -0.5)
    run = GuidedRun(guidance)
    answers = [run(world.x, world.sigma) for _ in range(3)]
    for answer, total in zip(answers, (1.0, 0.5, 0.75), strict=True):
        torch.testing.assert_close(answer, world.exact(p + 2 * total * (p - n)))
    again = GuidedRun(guidance)  # another run remembers nothing of it
    assert torch.equal(again(world.x, world.sigma), answers[0])


def test_momentum_without_a_run_is_refused(bent):
    guidance = Projected(bent.branch(1), bent.branch(2), 3.0, momentum=-0.5)
    with pytest.raises(
        UndustError, match=r"memory of one run; give the sampler GuidedRun\(guidance\)"
    ):
        guidance(bent.x, bent.sigma)


def test_settings_that_make_no_sense(bent):
    parts = bent.branch(1), bent.branch(2)
    for norm in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UndustError, match="apg: norm"):
            Projected(*parts, 2.0, norm=norm)
    for changed in ({"eta": math.nan}, {"momentum": math.inf}):
        with pytest.raises(UndustError, match=r"apg: eta .* must be finite"):
            Projected(*parts, 2.0, **changed)
