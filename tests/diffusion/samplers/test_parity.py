"""The multistep, consistency and predictor-corrector samplers against diffusers' schedulers.

Theirs are given our levels, in float64, so that what is compared is the method alone: how a
schedule chooses levels and time steps is held against theirs in tests/diffusion/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_sasolver import SASolverScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from orders import doubles
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.samplers import SAMPLERS

# numpy complains of how the schedulers turn their tables into arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NOISE = normal(1, (0, 0, 0), (2, 4, 5, 5))
STEPS = [1, 2, 3, 10]
MANY = 1000  # for the default options alone, as theirs takes seconds
PREDICTED = ["epsilon", "sample", "v_prediction"]
Network = Callable[[Tensor, Tensor], Tensor]


def network(x: Tensor, sigma: Tensor) -> Tensor:
    """Some smooth function of a picture of unit variance and its level."""
    return torch.tanh(1.3 * x.roll(1, 1) + sigma.log().to(x) / 3)


def levels(steps: int, *, to_zero: bool) -> Tensor:
    """Even in log σ from 14 to 0.02, or to 0 in place of that."""
    ladder = 0.02 * 700 ** torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return torch.cat([ladder[:-1], doubles(0.0)]) if to_zero else ladder


def scale(sigma: Tensor) -> Tensor:
    return (1 + sigma**2).sqrt()


def drawing() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(7)
    return lambda *_: torch.randn(NOISE.shape, generator=generator)


def run_ours(
    sampler: str, prediction: str, sigmas: Tensor, x: Tensor | None = None, **options: Any
) -> Tensor:
    """The end, at unit variance as theirs keep it, in float32."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        return PREDICTIONS[prediction].to_x0(network(x / scale(level), level), x, level)

    x = NOISE * scale(sigmas[0]).float() if x is None else x
    *_, last = SAMPLERS[sampler](denoise, x, sigmas, options.pop("noise", drawing()), **options)
    return last.x / scale(last.sigma)


def run_theirs(scheduler: Any, sigmas: Tensor, **options: Any) -> Tensor:
    """With their σ table replaced by ours; its time steps are counters that tell where they are."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(steps, 0, -1)
    x = NOISE
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, sigmas[index]), t, x, **options).prev_sample
    return x


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == torch.float32
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(
    ("variant", "steps", "prediction"),
    [*product(["bh1", "bh2"], STEPS, PREDICTED), ("bh2", MANY, "epsilon")],
)
def test_unipc(variant: str, steps: int, prediction: str):
    """To a level above 0, too, as theirs takes the step before the last one to 0 with order 2."""
    cases = [(1, False), (2, False), (3, False), (1, True), (2, True)]
    if variant == "bh1":
        cases = cases[:3]  # theirs does not arrive at 0: test_parity_faults.py
    for order, to_zero in cases if steps < MANY else cases[-1:]:
        scheduler = UniPCMultistepScheduler(
            solver_order=order,
            solver_type=variant,
            prediction_type=prediction,
            lower_order_final=to_zero,
        )
        sigmas = levels(steps, to_zero=to_zero)
        ours = run_ours("unipc", prediction, sigmas, order=order, variant=variant)
        assert difference(ours, run_theirs(scheduler, sigmas)) < 1e-5, (order, to_zero)


@pytest.mark.parametrize(("order", "steps"), [*product([1, 2, 3], STEPS), (2, MANY)])
def test_deis(order: int, steps: int):
    """Their last level is that of time step 0, never 0."""
    scheduler = DEISMultistepScheduler(solver_order=order, lower_order_final=False)
    sigmas = levels(steps, to_zero=False)
    ours = run_ours("deis", "epsilon", sigmas, order=order)
    assert difference(ours, run_theirs(scheduler, sigmas)) < 1e-5


@pytest.mark.parametrize(("tau", "steps"), [*product([0.0, 0.4, 1.0], STEPS), (1.0, MANY)])
def test_sa_solver(tau: float, steps: int):
    """Their last level is that of time step 0, never 0."""
    orders = [(2, 2), (1, 2), (3, 3), (3, 4)]
    for predictor, corrector in orders if steps < MANY else orders[:1]:
        scheduler = SASolverScheduler(
            predictor_order=predictor,
            corrector_order=corrector,
            tau_func=lambda _: torch.tensor(tau, dtype=torch.float64),
            lower_order_final=False,
        )
        sigmas = levels(steps, to_zero=False)
        theirs = run_theirs(scheduler, sigmas, generator=torch.Generator().manual_seed(7))
        options = {"tau": tau, "predictor": predictor, "corrector": corrector}
        ours = run_ours("sa-solver", "epsilon", sigmas, **options)
        assert difference(ours, theirs) < 1e-5, (predictor, corrector)


@pytest.mark.parametrize("steps", [*STEPS, MANY])
def test_ipndm(steps: int):
    """Theirs knows v alone, and a table of σ/√(1 + σ²) that may be any."""
    sigmas = levels(steps, to_zero=True)
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.betas, scheduler.alphas = sigmas / scale(sigmas), 1 / scale(sigmas)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    x = NOISE
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, sigmas[index]), t, x).prev_sample
    assert difference(run_ours("ipndm", "v_prediction", sigmas), x) < 1e-5


@pytest.mark.parametrize(
    ("name", "steps"), [("plms", 10), ("plms", 50), ("plms", 1000), ("pndm", 10), ("pndm", 50)]
)
def test_pndm_and_plms(name: str, steps: int):
    """On a process even in log σ, where half-way in time is our half-way too.

    With 1000 steps of 1000 theirs has no time steps half-way; with v it is wrong, see
    test_parity_faults.py.
    """
    table = 0.01 * 1500 ** torch.linspace(0, 1, 1000, dtype=torch.float64)
    scheduler = PNDMScheduler(set_alpha_to_one=True, skip_prk_steps=name == "plms")
    scheduler.alphas_cumprod = 1 / (1 + table**2)
    scheduler.set_timesteps(steps)
    times = torch.arange(steps).flip(0) * (1000 // steps)
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, table[t]), t.item(), x).prev_sample
    ours = run_ours(name, "epsilon", torch.cat([table[times], doubles(0.0)]))
    assert difference(ours, x) < 1e-5


@pytest.mark.parametrize("prediction", PREDICTED)
@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_lcm(steps: int, prediction: str):
    """But for c_skip and c_out, which are the distilled network's: theirs with them at 0 and 1."""
    scheduler = LCMScheduler(prediction_type=prediction, clip_sample=False, timestep_scaling=1e9)
    scheduler.set_timesteps(steps)
    table = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
    sigmas = torch.cat([table[scheduler.timesteps], doubles(0.0)])
    x, generator = NOISE, torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, table[t]), t, x, generator=generator).prev_sample
    assert difference(run_ours("lcm", prediction, sigmas), x) < 1e-5


@pytest.mark.parametrize("prediction", PREDICTED)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9])
def test_tcd(gamma: float, prediction: str):
    """Step by step, with our γ set to where their time steps lead; the last one only to time 0."""
    scheduler = TCDScheduler(prediction_type=prediction)
    scheduler.set_timesteps(8)
    table = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
    generator = torch.Generator().manual_seed(7)
    theirs, ours, noise = NOISE, NOISE, drawing()
    for index, t in enumerate(scheduler.timesteps):
        later = [*scheduler.timesteps[index + 1 :].tolist(), 0][0]
        output = network(theirs, table[t])
        theirs = scheduler.step(output, t, theirs, eta=gamma, generator=generator).prev_sample
        sigmas = torch.stack([table[t], table[later]])
        down = table[int((1 - gamma) * later)]
        x = ours * scale(sigmas[0]).float()
        ours = run_ours(
            "tcd", prediction, sigmas, x, gamma=float(1 - down / sigmas[1]), noise=noise
        )
    assert difference(ours, theirs) < 1e-5
