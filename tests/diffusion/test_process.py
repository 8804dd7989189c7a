from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from undust.diffusion.noise import normal
from undust.diffusion.process import PROCESSES, VP
from undust.errors import UndustError

THEIR_NAMES = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("steps", [100, 1000])
def test_tables_are_those_of_diffusers(name: str, steps: int):
    """To the float32 that diffusers computes its tables in; ours are float64."""
    ends = {"beta_start": 0.0015, "beta_end": 0.0195}
    theirs = DDPMScheduler(steps, **ends, beta_schedule=THEIR_NAMES[name])
    ours = PROCESSES[name](steps=steps, **ends)
    assert ours.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6
    )


def test_stable_diffusions_ends():
    """σ of the first and the last time step as published tools print them: 0.0292 and 14.6146."""
    process = PROCESSES["scaled-linear"]()
    assert process.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert process.sigma_max == pytest.approx(14.6146, abs=5e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_steps_and_sigmas_are_inverse(name: str):
    process = PROCESSES[name]()
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
    process = PROCESSES["linear"](steps=10)
    ends = torch.tensor([[0.0, 1e-9], [1e9, 1e3]], dtype=torch.float64)
    assert process.timestep(ends).tolist() == [[0, 0], [9, 9]]


def test_the_network_sees_unit_variance():
    """x0 and n of variance 1 at any σ; and exactly the noise it was started with."""
    process = PROCESSES["linear"]()
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
