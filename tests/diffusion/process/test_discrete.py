from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import DISCRETE, PROCESSES, VP, zero_terminal_snr
from undust.diffusion.process.base import SIGMA_INF
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

THEIR_NAMES = {
    "linear": "linear",
    "scaled-linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("steps", [100, 1000])
def test_tables_are_those_of_diffusers(name: str, steps: int):
    """To the float32 that diffusers computes its tables in; ours are float64."""
    ends = {"beta_start": 0.0015, "beta_end": 0.0195}
    theirs = DDPMScheduler(steps, **ends, beta_schedule=THEIR_NAMES[name])
    ours = DISCRETE[name](steps=steps, **ends)
    assert ours.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6
    )


def test_stable_diffusions_ends():
    """σ of the first and the last time step as published tools print them: 0.0292 and 14.6146."""
    process = DISCRETE["scaled-linear"]()
    assert process.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert process.sigma_max == pytest.approx(14.6146, abs=5e-5)


@pytest.mark.parametrize("name", DISCRETE)
def test_time_steps_and_sigmas_are_inverse(name: str):
    process = DISCRETE[name]()
    assert (process.sigmas.diff() > 0).all()
    whole = torch.arange(1000)
    assert torch.equal(process.sigma(whole), process.sigmas)
    # Whole steps come back whole even from σ in float32.
    assert torch.equal(process.timestep(process.sigmas.float()), whole.double())
    between = torch.linspace(0.3, 998.7, 777, dtype=torch.float64)
    torch.testing.assert_close(process.timestep(process.sigma(between)), between)
    assert process.sigma(2.5).item() == pytest.approx(
        (process.sigmas[2] * process.sigmas[3]).sqrt().item()
    )


def test_time_steps_end_with_the_table():
    process = DISCRETE["linear"](steps=10)
    ends = torch.tensor([[0.0, 1e-9], [1e9, 1e3]], dtype=torch.float64)
    assert process.timestep(ends).tolist() == [[0, 0], [9, 9]]


def test_the_network_sees_unit_variance():
    """x0 and n of variance 1 at any σ; and exactly the noise it was started with."""
    process = DISCRETE["linear"]()
    noise, x0 = normal(0, (0, 0, 0), (100_000,)), normal(1, (0, 0, 0), (100_000,))
    for sigma in torch.tensor([0.1, 1.0, 50.0]):
        x = x0 + sigma * noise
        assert (x * process.input_scale(sigma)).var().item() == pytest.approx(1, abs=0.02)
        started = process.start(noise, sigma) * process.input_scale(sigma)
        torch.testing.assert_close(started, noise)
    assert process.start(noise, 3.0).dtype == torch.float32


@pytest.mark.parametrize(
    "betas",
    [torch.tensor([0.1, 0.2]), torch.tensor([0.1]).double(), torch.tensor([0.1, 1.0]).double()],
)
def test_impossible_betas_are_refused(betas: torch.Tensor):
    with pytest.raises(UndustError, match=r"^betas: "):
        VP(betas)


def test_unknown_process():
    with pytest.raises(UndustError, match="unknown process 'cosin'; did you mean 'cosine'"):
        PROCESSES["cosin"]


@pytest.mark.parametrize("name", DISCRETE)
def test_continuous_beta_adds_up_to_the_steps(name: str):
    """∫β from one whole step to the next is −log(1 − β), whatever is between (Simpson's rule)."""
    process = DISCRETE[name](steps=50)
    step = torch.arange(49).double()
    offsets = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1]
    inside = process.beta(step[:, None] + offsets)
    # The ends of the piece from inside it: β jumps where two pieces meet.
    begin, end = process.beta(step + 1e-9), process.beta(step + 1 - 1e-9)
    total = begin + end + 4 * inside[:, ::2].sum(1) + 2 * inside[:, 1::2].sum(1)
    torch.testing.assert_close(total / 600, -(1 - process.betas[1:]).log(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("steps", [50, 1000, 20_000])
def test_zero_terminal_snr_is_lins_algorithm(name: str, steps: int):
    """√ᾱ, shifted and scaled: the first as it was, the last 0 as far as float32 can tell."""
    before = DISCRETE[name](steps, 0.1 / steps, 20 / steps)
    after = zero_terminal_snr(before)
    a, b = before.alphas_cumprod.sqrt(), after.alphas_cumprod.sqrt()
    torch.testing.assert_close(b[0], a[0])
    torch.testing.assert_close(b[:-1], a[0] * (a[:-1] - a[-1]) / (a[0] - a[-1]))
    assert after.sigma_max == pytest.approx(SIGMA_INF, rel=1e-6)
    assert (after.sigmas.diff() > 0).all()
    assert 1 / after.sigma_max == pytest.approx(torch.finfo(torch.float32).eps / 2, rel=1e-6)


def test_what_has_ended_before_its_end_is_refused():
    with pytest.raises(UndustError, match="zero terminal SNR: the process is pure noise"):
        zero_terminal_snr(DISCRETE["linear"](steps=20_000))


def test_a_fixed_stand_in_can_lie_below_the_step_before():
    """diffusers sets ᾱ = 2⁻²⁴, σ = 4096, where it should be infinite: below the step before it."""
    theirs = EulerDiscreteScheduler(beta_schedule="linear", rescale_betas_zero_snr=True)
    assert theirs.sigmas[0].item() == pytest.approx((2**24 - 1) ** 0.5, rel=1e-5)
    assert theirs.sigmas[0] < theirs.sigmas[1]
    sigmas = zero_terminal_snr(DISCRETE["linear"]()).sigmas
    assert sigmas[-2].item() == pytest.approx(theirs.sigmas[1].item(), rel=0.01)
    assert sigmas[-1] > sigmas[-2]


PIXELS = normal(3, (0, 0, 0), (2, 4, 5, 5))


def test_the_step_down_from_noise_alone_is_the_exact_one():
    """α = 0: x0 = −v and ε = x (Salimans & Ho 2022), so DDIM gives α'·(−v) + s'·noise exactly."""
    process = zero_terminal_snr(DISCRETE["scaled-linear"]())
    sigmas = SCHEDULES["trailing"](process, 10)[:2]
    told: list[Tensor] = []

    def network(seen: Tensor, timestep: Tensor, cond: None) -> Tensor:
        told.extend([seen, timestep])
        return torch.tanh(seen + 0.3)

    denoiser = NetworkDenoiser(network, process, PREDICTIONS["v_prediction"])
    x = process.start(PIXELS, sigmas[0])
    *_, last = SAMPLERS["euler"](lambda x, s: denoiser(x, s, None), x, sigmas, torch.zeros_like)
    torch.testing.assert_close(told[0], PIXELS)
    assert told[1].tolist() == [999, 999]
    v = torch.tanh(PIXELS + 0.3)
    alpha = process.alpha(899).float()
    exact = -alpha * v + (1 - alpha**2).sqrt() * PIXELS
    torch.testing.assert_close(last.x * alpha, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_zero_terminal_snr_paints_what_diffusers_ddim_paints(steps: int):
    """Theirs treats α = 0 exactly; ours has the stand-in: the same picture in float32."""
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
    )
    theirs.set_timesteps(steps)
    x = PIXELS
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x + t / 1000), t, x).prev_sample

    process = zero_terminal_snr(DISCRETE["scaled-linear"]())
    denoiser = NetworkDenoiser(
        lambda x, t, _: torch.tanh(x + t[:, None, None, None] / 1000),
        process,
        PREDICTIONS["v_prediction"],
    )
    sigmas = SCHEDULES["trailing"](process, steps)
    *_, last = SAMPLERS["ddim"](
        lambda x, s: denoiser(x, s, None),
        process.start(PIXELS, sigmas[0]),
        sigmas,
        torch.zeros_like,
    )
    assert (last.x - x).abs().max() < 1e-5 * x.abs().max()


def test_zero_terminal_snr_finds_the_mean_that_stable_diffusion_loses():
    """Lin et al. 2024, §2: data of one grey value, drawn from noise that was never shown it.

    From a finite σ_max the network takes noise of mean 0 for pictures of mean 0 and keeps 1/σ_max
    of the error; from noise alone nothing of it is left. In closed form for a Gaussian.
    """
    mean, own = 3.0, 0.5
    noise = normal(5, (0, 0, 0), (200, 1)).double()

    def error(process: VP) -> float:
        sigmas = SCHEDULES["trailing"](process, 1000)
        end = mean + (process.start(noise, sigmas[0]) - mean) * own / math.hypot(own, sigmas[0])
        *_, last = SAMPLERS["dpmpp-2m"](
            lambda x, s: mean + (x - mean) * own**2 / (own**2 + s[:, None] ** 2),
            process.start(noise, sigmas[0]),
            sigmas,
            torch.zeros_like,
        )
        torch.testing.assert_close(last.x.mean(), end.mean(), rtol=1e-3, atol=1e-3)
        return abs((end - own * noise).mean().item() - mean)

    usual = DISCRETE["scaled-linear"]()
    assert error(usual) == pytest.approx(mean * own / usual.sigma_max, rel=0.01)
    assert error(zero_terminal_snr(usual)) < 1e-6
