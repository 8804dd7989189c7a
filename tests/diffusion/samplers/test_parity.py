"""The multistep, singlestep, consistency and predictor-corrector samplers against diffusers'.

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
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import (
    KDPM2AncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_sasolver import SASolverScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from orders import doubles, fitted
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.samplers import SAMPLERS

pytestmark = [
    # numpy complains of how the schedulers turn their tables into arrays.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning"),
]

NOISE = normal(1, (0, 0, 0), (2, 4, 5, 5))
STEPS = [1, 2, 3, 10]
MANY = 200  # for the default options alone, as theirs takes seconds
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


def run_theirs(scheduler: Any, sigmas: Tensor, x: Tensor = NOISE, **options: Any) -> Tensor:
    """With their σ table replaced by ours; its time steps are counters that tell where they are."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(steps, 0, -1)
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, sigmas[index]), t, x, **options).prev_sample
    return x


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype
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


def run_dpm2(kind: Any, prediction: str, sigmas: Tensor, middles: Tensor, **options: Any) -> Tensor:
    """At unit variance. Theirs gets our levels as if they were its karras', and halves each step.

    middles: where it has to ask in between, one fewer than there are steps.
    """
    steps = len(sigmas) - 1
    # It prepares all of its time steps, each in its turn, and then drops them.
    options_of = {"prediction_type": prediction, "num_train_timesteps": steps + 2}
    scheduler = kind(**options_of, use_karras_sigmas=True)
    scheduler._convert_to_karras = lambda **_: sigmas[:-1].numpy()
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.arange(2 * steps - 1, 0, -1)  # theirs repeat when rounded
    asked = torch.cat([torch.stack([sigmas[:-2], middles], 1).flatten(), sigmas[-2:-1]])
    x = NOISE * scale(sigmas[0]).float()
    for t, sigma in zip(scheduler.timesteps, asked, strict=True):
        x = scheduler.step(network(x / scale(sigma), sigma), t, x, **options).prev_sample
    return x


DPM2 = [(s, p) for s in (1, 2, 3, 10, 60) for p in ("epsilon", "v_prediction")]  # theirs' two


@pytest.mark.parametrize(("steps", "prediction"), DPM2)
def test_dpm2(steps: int, prediction: str):
    """The middle of a step is that of log σ."""
    sigmas = levels(steps, to_zero=True).float().double()  # their table's precision
    middles = (sigmas[:-2] * sigmas[1:-1]).sqrt()
    theirs = run_dpm2(KDPM2DiscreteScheduler, prediction, sigmas, middles)
    assert difference(run_ours("dpm2", prediction, sigmas), theirs) < 1e-5


@pytest.mark.parametrize(("steps", "prediction"), DPM2)
def test_dpm2_ancestral(steps: int, prediction: str):
    """A step goes down to σ'²/σ, so that its middle in log σ is σ' itself."""
    sigmas = levels(steps, to_zero=True).float().double()
    generator = torch.Generator().manual_seed(7)
    theirs = run_dpm2(
        KDPM2AncestralDiscreteScheduler, prediction, sigmas, sigmas[1:-1], generator=generator
    )
    assert difference(run_ours("dpm2-ancestral", prediction, sigmas), theirs) < 1e-5


@pytest.mark.parametrize(
    ("order", "steps", "prediction"),
    [*product([1, 2, 3, 4], STEPS, PREDICTED), (4, 60, "epsilon")],
)
def test_lms(order: int, steps: int, prediction: str):
    """Down to a level above 0; how theirs arrives at 0 is in test_parity_faults.py."""
    for sigmas in [levels(steps, to_zero=False), levels(1, to_zero=True)]:
        scheduler = LMSDiscreteScheduler(prediction_type=prediction)
        scheduler.set_timesteps(len(sigmas) - 1)
        scheduler.sigmas, scheduler.is_scale_input_called = sigmas, True
        scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
        x = NOISE * scale(sigmas[0]).float()
        for index, t in enumerate(scheduler.timesteps):
            output = network(x / scale(sigmas[index]), sigmas[index])
            x = scheduler.step(output, t, x, order=order).prev_sample
        ours = run_ours("lms", prediction, sigmas, order=order)
        assert difference(ours, x / scale(sigmas[-1])) < 1e-5


def singlestep(
    order: int, algorithm: str, prediction: str, kind: Any = DPMSolverSinglestepScheduler
) -> Any:
    """Theirs, which takes `order` levels to a step."""
    return kind(
        solver_order=order,
        algorithm_type=algorithm,
        prediction_type=prediction,
        final_sigmas_type="sigma_min",
    )


@pytest.mark.parametrize("prediction", PREDICTED)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_singlestep_of_second_order(steps: int, prediction: str):
    """What lies within a step is a level of their list: in one even in log σ, the middle."""
    sigmas = levels(2 * steps, to_zero=False)
    for ours, algorithm in [
        ("dpm2", "dpmsolver"),
        ("dpm-solver-2", "dpmsolver"),
        ("dpmpp-2s-ancestral", "dpmsolver++"),
    ]:
        options = {"eta": 0.0} if ours == "dpmpp-2s-ancestral" else {}
        scheduler = singlestep(2, algorithm, prediction)
        theirs = run_theirs(scheduler, sigmas)
        assert scheduler.order_list == [1, 2] * steps
        assert difference(run_ours(ours, prediction, sigmas[::2], **options), theirs) < 1e-5


@pytest.mark.parametrize("prediction", PREDICTED)
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_singlestep_to_no_noise(steps: int, prediction: str):
    """The last step is Euler's on both sides."""
    ladder = levels(2 * steps - 2, to_zero=False) if steps > 1 else doubles(14.0)
    sigmas = torch.cat([ladder, doubles(0.0)])
    scheduler = DPMSolverSinglestepScheduler(prediction_type=prediction, lower_order_final=True)
    theirs = run_theirs(scheduler, sigmas)
    assert scheduler.order_list == [*[1, 2] * (steps - 1), 1]
    sigmas = torch.cat([ladder[::2], doubles(0.0)])
    ours = run_ours("dpmpp-2s-ancestral", prediction, sigmas, eta=0.0)
    assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
def test_singlestep_of_first_order(steps: int):
    sigmas = levels(steps, to_zero=False)
    for algorithm in ("dpmsolver", "dpmsolver++"):
        theirs = run_theirs(singlestep(1, algorithm, "epsilon"), sigmas)
        assert difference(run_ours("dpm-solver-1", "epsilon", sigmas), theirs) < 1e-5


class Mixed(DPMSolverSinglestepScheduler):
    """The call at two thirds of a step as solver type "heun" has it, the step itself "midpoint"."""

    def singlestep_dpm_solver_update(self, *args: Any, order: int, **options: Any) -> Tensor:
        self.register_to_config(solver_type="heun" if order == 2 else "midpoint")
        return super().singlestep_dpm_solver_update(*args, order=order, **options)


def third_order(kind: Any, steps: int, prediction: str) -> tuple[Tensor, Tensor]:
    """Ours and theirs, in float64: what theirs makes of x0 loses digits in few long steps."""
    sigmas, start = levels(3 * steps, to_zero=False), NOISE.double()
    scheduler = singlestep(3, "dpmsolver", prediction, kind)
    theirs = run_theirs(scheduler, sigmas, start)
    assert scheduler.order_list == [1, 2, 3] * steps
    start = start * scale(sigmas[0])
    return run_ours("dpm-solver-3", prediction, sigmas[::3], start), theirs


@pytest.mark.parametrize("prediction", PREDICTED)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
def test_singlestep_of_third_order(steps: int, prediction: str):
    """Lu et al. 2022a's algorithm 2 is theirs with both of its solver types mixed."""
    assert difference(*third_order(Mixed, steps, prediction)) < 1e-10


def test_singlestep_of_third_order_unmixed():
    """Another method of the same order: what lies between them falls with steps⁻³."""
    order = fitted(
        lambda steps: difference(*third_order(DPMSolverSinglestepScheduler, steps, "epsilon")),
        (32, 64, 128),
    )
    assert order == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(
    ("solver", "steps", "prediction"),
    [*product(["midpoint", "heun"], STEPS, PREDICTED), ("midpoint", 200, "epsilon")],
)
def test_dpmpp_2m_sde(solver: str, steps: int, prediction: str):
    for to_zero in (False, True):
        scheduler = DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++",
            solver_type=solver,
            prediction_type=prediction,
            final_sigmas_type="zero" if to_zero else "sigma_min",
            lower_order_final=to_zero,
        )
        sigmas = levels(steps, to_zero=to_zero)
        theirs = run_theirs(scheduler, sigmas, generator=torch.Generator().manual_seed(7))
        ours = run_ours("dpmpp-2m-sde", prediction, sigmas, solver=solver)
        assert difference(ours, theirs) < 1e-5, to_zero
