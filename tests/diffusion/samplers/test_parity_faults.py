"""Where diffusers' multi- and singlestep schedulers are wrong, or place what lies within a step
elsewhere: what theory says, and that ours keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from convergence import falling
from orders import doubles
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS

pytestmark = [
    # numpy complains of how the schedulers turn their tables into arrays.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning"),
]

NOISE = normal(1, (0, 0, 0), (16, 1)).double()


def scale(sigma: Tensor) -> Tensor:
    return (1 + sigma**2).sqrt()


def given(scheduler: Any, sigmas: Tensor) -> Any:
    """The scheduler with our levels in place of its own."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(steps, 0, -1)
    return scheduler


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of a Gaussian of mean 1 and deviation 0.5."""
    return 1 + (x - 1) * 0.25 / (0.25 + sigma.reshape(-1, 1) ** 2)


def test_the_third_order_of_dpm_solver():
    """Their term of third order is half of what the integral gives, as in the authors' own code.

    With an estimate λ² that depends on the level alone, three answers say all there is to know:
    the step is ∫ λ² e^{λ − λ₁} dλ. Theirs is off by half of the term's share of it.
    """
    sigmas = falling(3.0, 0.2, 8)
    config = {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}
    scheduler = given(
        DPMSolverMultistepScheduler(solver_order=3, lower_order_final=False, **config), sigmas
    )
    x = doubles([2.0])
    for index, t in enumerate(scheduler.timesteps):
        sigma, sigma_next = sigmas[index : index + 2]
        start, end = -sigma.log(), -sigma_next.log()
        moved = scheduler.step((start**2).reshape(1, 1), t, x / scale(sigma)).prev_sample
        moved = moved.double() * scale(sigma_next)
        kept = sigma_next / sigma
        true = (x - start**2 + 2 * start - 2) * kept + end**2 - 2 * end + 2
        h = end - start
        term = h**2 - 2 * h + 2 - 2 * kept  # ∫ (λ − λ₀)² e^{λ − λ₁} dλ
        if index >= 2:
            assert (moved - true).item() == pytest.approx(-term.item() / 2, rel=1e-3)
        x = true


def test_the_same_model_by_epsilon_and_by_v():
    """The picture is the same; theirs is not.

    PLMS averages slopes, which the noise is. Theirs averages v, and reads the noise from the mean
    as if all of it had been seen at the step's start.
    """
    ends = []
    for prediction in ("epsilon", "v_prediction"):
        scheduler = PNDMScheduler(
            skip_prk_steps=True, set_alpha_to_one=True, prediction_type=prediction
        )
        scheduler.set_timesteps(50)
        table = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
        x = NOISE
        for t in scheduler.timesteps:
            x0 = gaussian(x * scale(table[t]), table[t])
            epsilon = (x * scale(table[t]) - x0) / table[t]
            v = (epsilon - table[t] * x0) / scale(table[t])
            output = epsilon if prediction == "epsilon" else v
            x = scheduler.step(output, t.item(), x).prev_sample
        ends.append(x)
    times = torch.arange(50).flip(0) * 20
    sigmas = torch.cat([table[times], doubles(0.0)])
    *_, ours = SAMPLERS["plms"](gaussian, NOISE * scale(sigmas[0]), sigmas, torch.zeros_like)
    torch.testing.assert_close(ours.x, ends[0], rtol=1e-5, atol=1e-5)
    assert (ends[1] - ends[0]).abs().max() > 0.01


def test_unipc_with_bh1_arrives():
    """At σ = 0 their B(h) = h is infinite, and multiplied with a correction of 0."""
    sigmas = doubles(5.0, 1.0, 0.0)
    scheduler = given(UniPCMultistepScheduler(solver_type="bh1", prediction_type="sample"), sigmas)
    x = NOISE
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(gaussian(x * scale(sigmas[index]), sigmas[index]), t, x).prev_sample
    assert x.isnan().all()
    *_, ours = SAMPLERS["unipc"](
        gaussian, NOISE * scale(sigmas[0]), sigmas, torch.zeros_like, variant="bh1"
    )
    assert ours.x.isfinite().all()
    assert torch.equal(ours.x, ours.x0)


def test_tcd_arrives_at_no_noise():
    """Theirs stops at the level of time step 0; one step has to give the model's answer itself."""
    scheduler = TCDScheduler(prediction_type="sample")
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    sigma = (1 / scheduler.alphas_cumprod[t].double() - 1).sqrt()
    answer = gaussian(NOISE * scale(sigma), sigma)
    assert (scheduler.step(answer, t, NOISE).prev_sample - answer).abs().max() > 0.01
    (ours,) = SAMPLERS["tcd"](
        gaussian, NOISE * scale(sigma), doubles(sigma.item(), 0.0), torch.zeros_like
    )
    assert torch.equal(ours.x, answer)


def test_no_polynomial_is_carried_on_to_zero():
    """LMS: the step to 0 is as long as σ itself, ten times those before it.

    Over it their polynomial through four slopes magnifies what a network does not know. Euler's
    step, ours, ends with the network's last answer, wrong by 0.001 as it was.
    """
    ladder = 10.0 * 0.001 ** torch.linspace(0, 1, 80, dtype=torch.float64)
    sigmas = torch.cat([ladder, doubles(0.0)])

    def err(_x: Tensor, sigma: Tensor) -> Tensor:
        """The picture is 0."""
        return 1e-3 * torch.sin(1e4 * sigma.reshape(-1, 1))

    scheduler = given(LMSDiscreteScheduler(prediction_type="sample"), sigmas)
    scheduler.is_scale_input_called = True
    x = doubles([0.0])
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(err(x, sigmas[index]), t, x).prev_sample
    *_, ours = SAMPLERS["lms"](err, doubles([0.0]), sigmas, torch.zeros_like)
    assert ours.x.abs() <= 1e-3
    assert x.abs() > 0.05


@pytest.mark.parametrize("middle", [1.0, 0.6, 1.9])
def test_a_single_step_asks_at_its_middle(middle: float):
    """DPM-Solver-2 from σ = 2 to 0.5, by the slopes (x − x0)/σ there and on the way.

    In its general form (Lu et al. 2022a, appendix) with r₁ the share of the step in log σ after
    which it asks, and the change of slope counted 1/(2r₁)-fold. Ours asks at r₁ = ½ (algorithm 1),
    theirs at whichever level its list has next.
    """
    sigmas = doubles(2.0, middle, 0.5)
    top, end = sigmas[0], sigmas[2]

    def by_theory(asked: Tensor) -> Tensor:
        first = (NOISE * scale(top) - gaussian(NOISE * scale(top), top)) / top
        x = NOISE * scale(top) + (asked - top) * first
        second = (x - gaussian(x, asked)) / asked
        share = (top / asked).log() / (top / end).log()
        return NOISE * scale(top) + (end - top) * (first + (second - first) / (2 * share))

    config = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    scheduler = given(DPMSolverSinglestepScheduler(prediction_type="sample", **config), sigmas)
    x = NOISE
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(gaussian(x * scale(sigmas[index]), sigmas[index]), t, x).prev_sample
    torch.testing.assert_close(x * scale(end), by_theory(sigmas[1]))
    *_, ours = SAMPLERS["dpm-solver-2"](gaussian, NOISE * scale(top), sigmas[::2], torch.zeros_like)
    torch.testing.assert_close(ours.x, by_theory((top * end).sqrt()))
    assert ((ours.x - x * scale(end)).abs().max() > 1e-3) == (middle != 1.0)
