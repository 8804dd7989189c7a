from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peers import k_diffusion_sampling
from undust.diffusion.noise import normal
from undust.diffusion.process import EDM, PROCESSES, VP, Flow
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.diffusion.schedules.published import SD1, SDXL, SVD
from undust.errors import UndustError

BUILT = {name: build() for name, build in PROCESSES.items()}
PROCESS = BUILT["scaled-linear"]
COUNTS = pytest.mark.parametrize("steps", [1, 2, 10, 50, 1000])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=0)


def test_karras_is_the_published_formula():
    """Karras et al. 2022, eq. 5 with ρ = 7, written out."""
    low, high, n = BUILT["linear"].sigma_min, BUILT["linear"].sigma_max, 12
    expected = [
        (high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)
    ]
    assert SCHEDULES["karras"](BUILT["linear"], n).tolist() == pytest.approx([*expected, 0])


def test_exponential_has_one_ratio():
    sigmas = SCHEDULES["exponential"](BUILT["linear"], 12)[:-1]
    ratio = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
    assert sigmas[0].item() == pytest.approx(BUILT["linear"].sigma_max)
    assert sigmas[-1].item() == pytest.approx(BUILT["linear"].sigma_min)


@COUNTS
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("karras", {}),
        ("karras", {"rho": 5.0}),
        ("exponential", {}),
        ("polyexponential", {}),
        ("polyexponential", {"rho": 2.0}),
        ("polyexponential", {"rho": 0.5}),
    ],
)
def test_levels_are_those_of_k_diffusion(name: str, options: dict[str, float], steps: int):
    theirs = getattr(k_diffusion_sampling(), f"get_sigmas_{name}")
    for process in (PROCESS, EDM()):
        expected = theirs(steps, process.sigma_min, process.sigma_max, **options)
        close(SCHEDULES[name](process, steps, **options), expected)


@COUNTS
@pytest.mark.parametrize(
    ("name", "kind", "option"),
    [
        ("karras", EulerDiscreteScheduler, "use_karras_sigmas"),
        ("exponential", EulerDiscreteScheduler, "use_exponential_sigmas"),
        ("log-snr", DPMSolverMultistepScheduler, "use_lu_lambdas"),
    ],
)
def test_levels_are_those_of_diffusers(name: str, kind: Any, option: str, steps: int):
    scheduler = kind(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **{option: True}
    )
    scheduler.set_timesteps(steps)
    left = scheduler.alphas_cumprod.double()  # their table, in float32
    process = VP(1 - left / torch.cat([left.new_ones(1), left[:-1]]))
    sigmas = SCHEDULES[name](process, steps)
    if steps == 1 and kind is EulerDiscreteScheduler:
        # Theirs takes the ends from its spacing of time steps, which for one is the first of them.
        assert scheduler.sigmas[0].item() == pytest.approx(process.sigma_min, rel=1e-5)
        assert sigmas[0].item() == pytest.approx(process.sigma_max)
    else:
        close(sigmas, scheduler.sigmas)


@pytest.mark.parametrize("name", BUILT)
def test_even_in_log_snr_is_exponential(name: str):
    """SNR = α²/s² = 1/σ² in every process: its logarithm is −2·log σ."""
    process = BUILT[name]
    sigmas = SCHEDULES["log-snr"](process, 9)
    assert torch.equal(sigmas, SCHEDULES["exponential"](process, 9))
    time = process.time(sigmas[:-1])[1:-1]
    log_snr = 2 * (process.alpha(time) / process.std(time)).log()
    torch.testing.assert_close(log_snr.diff(), log_snr.diff().mean().expand(6), rtol=1e-5, atol=0)


def kept(sigmas: Tensor) -> float:
    """How much of its deviation, 1, a unit Gaussian has left after Euler's steps to the last σ."""
    x = normal(0, (0, 0, 0), (8, 1)).double()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)

    *_, last = SAMPLERS["euler"](denoise, x, sigmas, torch.zeros_like)
    exact = ((1 + sigmas[-1] ** 2) / (1 + sigmas[0] ** 2)).sqrt()
    return (last.x / (exact * x)).mean().item()


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=9, unique=True))
def test_kl_optimal_loses_least_of_a_unit_gaussian(shares: list[float]):
    """Π cos Δ, Δ the steps in the angle arctan σ; no other levels between the ends keep more."""
    sigmas = SCHEDULES["kl-optimal"](PROCESS, len(shares) + 2)[:-1]
    angles = sigmas.atan()
    torch.testing.assert_close(angles.diff(), angles.diff().mean().expand(len(angles) - 1))
    assert kept(sigmas) == pytest.approx(angles.diff().cos().prod().item(), rel=1e-9)

    low, high = PROCESS.sigma_min, PROCESS.sigma_max
    others = [low * (high / low) ** share for share in sorted(shares, reverse=True)]
    if all(a > b for a, b in pairwise(others)):
        assert kept(torch.tensor([high, *others, low], dtype=torch.float64)) <= kept(sigmas) * (
            1 + 1e-9
        )


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 64, 1000])
def test_linear_quadratic_is_made_of_two_halves(steps: int):
    """In τ = σ/(1 + σ): even steps down by 0.025, then even steps of the step, on to 0."""
    sigmas = SCHEDULES["linear-quadratic"](Flow(), steps)
    tau = sigmas / (1 + sigmas)
    even = steps // 2
    step = -tau.diff()
    assert tau[0].item() == pytest.approx(1)
    if even:
        torch.testing.assert_close(step[:even], torch.full_like(step[:even], 0.025 / even))
    bend = step[even:].diff()
    assert (bend > 0).all()
    if len(bend):
        torch.testing.assert_close(bend, bend.mean().expand(len(bend)), rtol=1e-6, atol=1e-12)
        if even:  # a parabola's first step is its slope and half of its bend
            assert (step[even] - 0.025 / even).item() == pytest.approx(bend[0].item() / 2, rel=1e-6)


def test_linear_quadratic_is_that_of_mochis_pipeline():
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    for steps in (2, 9, 64):
        expected = torch.tensor(linear_quadratic_schedule(steps, 0.025), dtype=torch.float64)
        sigmas = SCHEDULES["linear-quadratic"](Flow(), steps)[:-1]
        torch.testing.assert_close(sigmas / (1 + sigmas), expected, rtol=1e-5, atol=0)


ALIGNED = {
    "align-your-steps": (SD1, "StableDiffusion"),
    "align-your-steps-sdxl": (SDXL, "StableDiffusionXL"),
    "align-your-steps-svd": (SVD, "StableDiffusionVideo"),
}


@pytest.mark.parametrize("name", ALIGNED)
def test_ten_aligned_steps_are_the_published_ones(name: str):
    """As diffusers has them, which already puts 0 in the place of the last level."""
    from diffusers.schedulers.scheduling_utils import AysSchedules

    _, theirs = ALIGNED[name]
    expected = torch.tensor(AysSchedules[f"{theirs}Sigmas"], dtype=torch.float64)
    process = EDM(highest=700.0)
    torch.testing.assert_close(SCHEDULES[name](process, 10), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("steps", [1, 3, 20, 1000])
def test_other_numbers_of_aligned_steps_are_between_them(name: str, steps: int):
    """log σ on straight lines between the published levels, the last of which becomes 0."""
    table, _ = ALIGNED[name]
    sigmas = SCHEDULES[name](EDM(highest=700.0), steps)[:-1].tolist()
    for k, sigma in enumerate(sigmas):
        low, part = divmod(10 * k / steps, 1)
        a, b = table[int(low)], table[min(int(low) + 1, 10)]
        assert sigma == pytest.approx(a ** (1 - part) * b**part, rel=1e-9)


@pytest.mark.parametrize("top", [20.0, 14.615, 10.0, 1.0, 0.1])
def test_aligned_steps_start_where_the_process_does(top: float):
    process = EDM(highest=top)
    sigmas = SCHEDULES["align-your-steps"](process, 12)
    assert sigmas[0].item() == pytest.approx(min(top, 14.615))
    assert sigmas[-2] > 0.029


def test_a_process_with_less_noise_than_the_last_aligned_level():
    for steps in (1, 5):
        with pytest.raises(UndustError, match=rf"{steps} steps do not fit between .* σ 0\.02 and"):
            SCHEDULES["align-your-steps"](EDM(highest=0.02), steps)
