"""Where diffusers' schedulers are wrong: what theory says, that ours keeps it, that theirs do not.

Should one of these fail for their half, they have put it right, and the case belongs into
test_parity.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from undust.diffusion.noise import normal
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES

# numpy complains of how the schedulers turn their tables into arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STABLE_DIFFUSION: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
PROCESS = PROCESSES["scaled-linear"]()
NOISE = normal(1, (0, 0, 0), (64, 1)).double()
MEAN, DEVIATION = 0.5, 0.3


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of a Gaussian."""
    spread = DEVIATION**2 + sigma.reshape(-1, 1) ** 2
    return MEAN + (x - MEAN) * DEVIATION**2 / spread


def exact_end(sigma: Tensor) -> Tensor:
    """Where the flow takes NOISE started at level σ: the closed form for a Gaussian."""
    start = PROCESS.start(NOISE, sigma)
    return MEAN + (start - MEAN) * DEVIATION / (DEVIATION**2 + sigma**2).sqrt()


def run_ours(sampler: str, schedule: str, steps: int) -> Tensor:
    sigmas = SCHEDULES[schedule](PROCESS, steps)
    *_, last = SAMPLERS[sampler](
        denoise, PROCESS.start(NOISE, sigmas[0]), sigmas, lambda *_: torch.zeros_like(NOISE)
    )
    return last.x


def run_theirs(scheduler: Any) -> Tensor:
    """With x kept at unit variance, and asked for ε by the time step they name."""
    x = NOISE
    for t in scheduler.timesteps:
        sigma = PROCESS.sigmas[t]
        unscaled = x * (1 + sigma**2).sqrt()
        epsilon = (unscaled - denoise(unscaled, sigma)) / sigma
        x = scheduler.step(epsilon, t, x).prev_sample
    return x


@pytest.mark.parametrize("schedule", ["linspace", "trailing"])
def test_ddim_steps_to_the_next_level_of_its_list(schedule: str):
    """diffusers#12633, #11347, #9261: theirs steps by T // steps, which is not the list's spacing.

    Against the closed form, ours has the first-order error of 600 steps; theirs ends elsewhere.
    """
    steps = 600
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=schedule, **STABLE_DIFFUSION)
    scheduler.set_timesteps(steps)
    times = PROCESS.timestep(SCHEDULES[schedule](PROCESS, steps)[:-1])
    assert torch.equal(scheduler.timesteps, times.long())

    end = exact_end(PROCESS.sigmas[-1])
    ours, theirs = (
        (x - end).abs().max().item()
        for x in (run_ours("ddim", schedule, steps), run_theirs(scheduler))
    )
    assert ours < 0.02
    assert theirs > 10 * ours


def test_as_many_steps_as_trained():
    """diffusers#10003: `leading` counts from 1 and asks for time step 1000 of 0 … 999."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="leading", **STABLE_DIFFUSION)
    scheduler.set_timesteps(1000)
    with pytest.raises(IndexError):
        run_theirs(scheduler)
    end = exact_end(PROCESS.sigmas[-1])
    assert (run_ours("ddim", "leading", 1000) - end).abs().max() < 0.01


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_the_network_is_told_the_level_it_is_at(schedule: str):
    """diffusers#4122, #6477: time steps of free σ are rounded (karras) or cut off (exponential).

    Of 100 steps asked, several then share a time step at different σ. Ours are fractional.
    """
    config: dict[str, Any] = {f"use_{schedule}_sigmas": True, **STABLE_DIFFUSION}
    scheduler = DPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(100)
    told = PROCESS.sigma(scheduler.timesteps)
    assert len(scheduler.timesteps.unique()) < 100
    assert (told / scheduler.sigmas[:-1] - 1).abs().max() > 0.05

    sigmas = SCHEDULES[schedule](PROCESS, 100)[:-1]
    times = PROCESS.timestep(sigmas)
    assert len(times.unique()) == 100
    torch.testing.assert_close(PROCESS.sigma(times), sigmas)


def test_linspace_pairs_a_time_step_with_its_own_sigma():
    """Theirs takes fractional time steps and σ on a straight line between two whole ones, though
    elsewhere it reads time steps from log σ: the two disagree. Ours visits whole time steps."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace", **STABLE_DIFFUSION)
    scheduler.set_timesteps(50)
    table = np.log(scheduler.alphas_cumprod.reciprocal().sub(1).sqrt().numpy())
    own = scheduler._sigma_to_t(scheduler.sigmas[:-1].numpy(), table)
    assert np.abs(own - scheduler.timesteps.numpy()).max() > 1e-3

    times = PROCESS.timestep(SCHEDULES["linspace"](PROCESS, 50)[:-1])
    assert torch.equal(times, times.round())
    assert (times - scheduler.timesteps.double()).abs().max() <= 0.5


def test_one_step_starts_at_the_top():
    """Asked for one step, their linspace visits the level with the least noise instead."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace", **STABLE_DIFFUSION)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0]
    assert SCHEDULES["linspace"](PROCESS, 1).tolist() == [PROCESS.sigma_max, 0]


def test_the_last_step_arrives_at_no_noise():
    """Stable Diffusion's `set_alpha_to_one: false` stops at σ of time step 0, 0.03 of ε too early.

    With one step the answer has to be the denoised mean.
    """
    config: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}
    scheduler = DDIMScheduler(timestep_spacing="trailing", **config, **STABLE_DIFFUSION)
    scheduler.set_timesteps(1)
    top = PROCESS.sigmas[-1]
    mean = denoise(PROCESS.start(NOISE, top), top)
    assert torch.equal(run_ours("ddim", "trailing", 1), mean)
    assert (run_theirs(scheduler) - mean).abs().max() > 0.01


def test_no_noise_is_added_after_the_last_step():
    """Ho et al. 2020, algorithm 2, line 3: z = 0 in the last step, whichever time step that is.

    Theirs asks for time step 0, which `leading` and `trailing` never visit.
    """
    config: dict[str, Any] = {"clip_sample": False, "variance_type": "fixed_large"}
    scheduler = DDPMScheduler(timestep_spacing="trailing", **config, **STABLE_DIFFUSION)
    scheduler.set_timesteps(1)
    top = PROCESS.sigmas[-1]
    mean = denoise(PROCESS.start(NOISE, top), top)
    assert (run_theirs(scheduler) - mean).std() > 0.5

    sigmas = torch.stack([top, top.new_zeros(())])
    (step,) = SAMPLERS["ddpm"](
        denoise,
        PROCESS.start(NOISE, top),
        sigmas,
        lambda *_: torch.ones_like(NOISE),
        variance="large",
    )
    assert torch.equal(step.x, mean)


def test_the_network_sees_unit_variance_from_the_start():
    """Theirs starts `trailing` and `linspace` from σ·n, which is √(1 + σ²)·n less the picture."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", **STABLE_DIFFUSION)
    scheduler.set_timesteps(10)
    seen = scheduler.scale_model_input(NOISE * scheduler.init_noise_sigma, scheduler.timesteps[0])
    assert (seen / NOISE).mean().item() == pytest.approx(
        PROCESS.sigma_max / math.hypot(1, PROCESS.sigma_max)
    )
    assert (seen / NOISE).mean() < 0.998

    top = PROCESS.sigmas[-1]
    torch.testing.assert_close(PROCESS.start(NOISE, top) * PROCESS.input_scale(top), NOISE)


def test_float32_lasts_from_the_top_of_the_cosine_process():
    """σ = 20 000: x + (x − x0)/σ·(σ' − σ) cancels most digits of x, x0 + σ'/σ·(x − x0) none.

    The truth is our own run in float64.
    """
    process = PROCESSES["cosine"]()
    sigmas = SCHEDULES["trailing"](process, 10)

    def run(x: Tensor) -> Tensor:
        *_, last = SAMPLERS["euler"](
            lambda x, sigma: x - sigma[:, None] * epsilon(x * process.input_scale(sigma[:, None])),
            x,
            sigmas,
            torch.zeros_like,
        )
        return last.x

    def epsilon(seen: Tensor) -> Tensor:
        return torch.tanh(seen + 0.3)

    start = process.start(NOISE, sigmas[0])
    truth = run(start)

    scheduler = EulerDiscreteScheduler(
        beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    x = start.float()
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(scheduler.scale_model_input(x, t)), t, x).prev_sample

    ours, theirs = (
        ((end - truth).abs().max() / truth.abs().max()).item() for end in (run(start.float()), x)
    )
    assert ours < 1e-5
    assert theirs > 10 * ours
