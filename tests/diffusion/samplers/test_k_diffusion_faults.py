"""Where k-diffusion's samplers are wrong: what theory says, that ours keep it and theirs do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peers import k_diffusion_sampling
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS

EVEN = 2.0 * 0.1 ** torch.linspace(0, 1, 6, dtype=torch.float64)
ZERO = torch.zeros(1, 1, dtype=torch.float64)


def ours(name: str, denoise: Any, sigmas: Tensor, **options: Any) -> list[Tensor]:
    return [s.x for s in SAMPLERS[name](denoise, ZERO, sigmas, lambda *_: ZERO, **options)]


def theirs(name: str, denoise: Any, sigmas: Tensor, **options: Any) -> list[Tensor]:
    """What x is before each step, and at the end."""
    seen: list[Tensor] = []
    sample = getattr(k_diffusion_sampling(), name)
    end = sample(
        lambda x, sigma: denoise(x, sigma),
        ZERO,
        sigmas,
        disable=True,
        callback=lambda state: seen.append(state["x"]),
        noise_sampler=lambda *_: ZERO,
        **options,
    )
    return [*seen[1:], end]


def parabola(_x: Tensor, sigma: Tensor) -> Tensor:
    """An estimate that is λ² whatever x: three of them say all about it."""
    return sigma.log().square().reshape(-1, 1)


def exact_step(x: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float) -> Tensor:
    """dx/dλ = (1 + η)(λ² − x) without noise: the particular solution, and the rest that decays."""
    rate = 1 + eta

    def particular(sigma: Tensor) -> Tensor:
        level = -sigma.log()
        return level**2 - 2 * level / rate + 2 / rate**2

    return particular(sigma_next) + (x - particular(sigma)) * (sigma_next / sigma) ** rate


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_three_estimates_are_a_parabola(eta: float):
    """dpmpp-3m-sde: the second difference is half of the second derivative, φ₃ belongs to a whole.

    From the third step on, an estimate of degree 2 in λ has to be followed exactly.
    """
    own = ours("dpmpp-3m-sde", parabola, EVEN, eta=eta)
    other = theirs("sample_dpmpp_3m_sde", parabola, EVEN, eta=eta)
    for k in (2, 3, 4):
        right = exact_step(own[k - 1], EVEN[k], EVEN[k + 1], eta)
        torch.testing.assert_close(own[k], right, rtol=1e-10, atol=1e-10)
        wrong = exact_step(other[k - 1], EVEN[k], EVEN[k + 1], eta)
        assert (other[k] - wrong).abs() > 1e-3


def test_until_the_third_estimate_they_agree():
    own = ours("dpmpp-3m-sde", parabola, EVEN)
    other = theirs("sample_dpmpp_3m_sde", parabola, EVEN)
    torch.testing.assert_close(torch.cat(own[:1]), torch.cat(other[:1]))
    heun = ours("dpmpp-2m-sde", parabola, EVEN, solver="heun")
    torch.testing.assert_close(torch.cat(own[:2]), torch.cat(heun[:2]))


@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "dpmpp-3m-sde"])
def test_one_step_is_possible(name: str):
    """Theirs reads the length of a step in λ that the step to 0 has never set."""
    sigmas = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert torch.equal(ours(name, parabola, sigmas)[0], parabola(ZERO, sigmas[0]))
    with pytest.raises(UnboundLocalError):
        theirs("sample_" + name.replace("-", "_"), parabola, sigmas)


def test_no_polynomial_is_carried_on_to_zero():
    """lms: in many steps the last one, to 0, is a hundred times longer than those before it.

    Continued over it, four slopes blow up whatever a network does wrong.
    """
    ladder = 10.0 * 0.001 ** torch.linspace(0, 1, 500, dtype=torch.float64)
    sigmas = torch.cat([ladder, ladder.new_zeros(1)])

    def err(_x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        """The picture is 0; a network knows that to 0.001."""
        return 1e-3 * torch.sin(1e4 * sigma.reshape(-1, 1))

    assert ours("lms", err, sigmas)[-1].abs() <= 1e-3
    sample = k_diffusion_sampling().sample_lms
    assert sample(err, ZERO, sigmas, disable=True).abs() > 1


def test_nothing_is_churned_before_the_denoised_mean():
    """edm: one step is E[x0 | x]; with noise put on x first it knows less of the picture."""
    sigmas = torch.tensor([1.0, 0.0], dtype=torch.float64)
    count = 20_000
    pictures = normal(1, (0, 0, 0), (count, 1)).double()
    x = pictures + normal(2, (0, 0, 0), (count, 1)).double()

    def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return x / (1 + sigma.reshape(-1, 1) ** 2)

    (step,) = SAMPLERS["edm"](denoise, x, sigmas, lambda *_: ZERO)
    assert torch.equal(step.x, x / 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sample = k_diffusion_sampling().sample_heun
        churned = sample(denoise, x, sigmas, disable=True, s_churn=40.0)
    # The posterior's variance σ²/(1 + σ²): ½ at σ = 1, ⅔ at the √2 that they go up to.
    assert (step.x - pictures).square().mean().item() == pytest.approx(1 / 2, rel=0.05)
    assert (churned - pictures).square().mean().item() == pytest.approx(2 / 3, rel=0.05)


def test_a_picture_depends_on_those_beside_it():
    """dpm-adaptive: one step size for all, by the mean of their errors (ours: test_adaptive.py)."""
    x = torch.tensor([[1.0], [300.0]])
    sample = k_diffusion_sampling().sample_dpm_adaptive

    def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return torch.tanh(x / sigma.reshape(-1, 1))

    together = sample(denoise, x, 0.1, 10.0, disable=True)
    alone = sample(denoise, x[:1], 0.1, 10.0, disable=True)
    assert (together[0] - alone[0]).abs() > 1e-4
