"""Samplers that begin where there is nothing but noise: rectified flow, zero terminal SNR."""

from __future__ import annotations

import pytest
import torch

from convergence import GAUSSIAN, impulses
from undust.diffusion.noise import normal
from undust.diffusion.process import PROCESSES, Process, zero_terminal_snr
from undust.diffusion.process.base import SIGMA_INF
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES

ENDLESS_PROCESSES = (PROCESSES["flow"](), zero_terminal_snr(PROCESSES["linear"]()))  # pyright: ignore
DEVIATION = GAUSSIAN.deviations.item()
MEAN = GAUSSIAN.means.item()
GUESSING = {"lcm", "tcd"}  # only a distilled model knows x0 at once
MEASURED = sorted(SAMPLERS.keys() - GUESSING - {n for n in SAMPLERS if SAMPLERS[n].adaptive})


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("process", ENDLESS_PROCESSES, ids=["flow", "zero-snr"])
def test_the_gaussian_comes_out_of_nothing_but_noise(name: str, process: Process):
    """Mean and deviation of its ends, without random numbers; the error falls with the steps."""
    for steps, bound in ((20, 0.25), (80, 0.1)):
        sigmas = SCHEDULES["trailing"](process, steps)
        assert sigmas[0] > SIGMA_INF / 2
        base, own, shares = impulses(name, sigmas, None)
        spread = (own**2 * (1 + sigmas[0] ** 2) + shares.square().sum()).sqrt().item()
        assert spread == pytest.approx(DEVIATION, rel=bound)
        assert base.item() == pytest.approx(MEAN, abs=bound * DEVIATION)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].adaptive])
@pytest.mark.parametrize("process", ENDLESS_PROCESSES, ids=["flow", "zero-snr"])
def test_adaptive_samplers_find_the_flow_s_end(name: str, process: Process):
    """On a Gaussian the flow keeps (x − m)/√(s² + σ²).

    The bound on the error is one relative to x, of which the picture is a small part at first.
    """
    unit = normal(1, (0, 0, 0), (64, 1)).double()
    sigmas = SCHEDULES["trailing"](process, 80)
    bounds = {"rtol": 1e-5, "atol": 1e-5}
    steps = SAMPLERS[name](GAUSSIAN, sigmas[0] * unit, sigmas, torch.zeros_like, **bounds)
    *_, last = steps
    expected = MEAN + DEVIATION * (unit - MEAN / sigmas[0])
    assert (last.x - expected).abs().max() < 0.02 * DEVIATION


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_counted_from_the_first(name: str):
    sigmas = SCHEDULES["trailing"](ENDLESS_PROCESSES[0], 6)
    noise = normal(2, (0, 0, 0), (4, 1)).double()
    steps = list(SAMPLERS[name](GAUSSIAN, sigmas[0] * noise, sigmas, lambda *_: noise))
    assert steps[-1].index == 5
    if not SAMPLERS[name].adaptive and name != "dpm-fast":
        assert [step.index for step in steps] == list(range(6))
        assert [float(step.sigma) for step in steps] == sigmas[1:].tolist()
