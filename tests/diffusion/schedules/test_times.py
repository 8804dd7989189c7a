from __future__ import annotations

import pytest
import scipy.stats
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from peers import k_diffusion_sampling
from undust.diffusion.process import (
    DISCRETE,
    EDM,
    PROCESSES,
    ContinuousVP,
    Flow,
    Process,
    zero_terminal_snr,
)
from undust.diffusion.schedules import SCHEDULES
from undust.diffusion.schedules.quantile import beta_quantile
from undust.errors import UndustError

BUILT: dict[str, Process] = {
    **{name: build() for name, build in PROCESSES.items()},
    **{f"{name}-zero-snr": zero_terminal_snr(build()) for name, build in DISCRETE.items()},
    "flow-shifted": Flow(shift=3.0),
    "svd": EDM(lowest=0.002, highest=700.0, sigma_data=1.0),
}
SHORT = DISCRETE["linear"](steps=7)
WHOLE = ("leading", "trailing", "linspace")  # those that visit whole time steps


@given(st.sampled_from([*SCHEDULES]), st.sampled_from([*BUILT]), st.integers(1, 1000))
def test_every_length_falls_strictly_to_zero(name: str, process: str, steps: int):
    sigmas = SCHEDULES[name](BUILT[process], steps)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (steps + 1,)
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0] <= BUILT[process].sigma_max * (1 + 1e-12)
    if not name.startswith(("leading", "align")):
        assert sigmas[0].item() == pytest.approx(BUILT[process].sigma_max, rel=1e-8)
    if steps > 1 and name in TO_THE_LAST:
        assert sigmas[-2].item() == pytest.approx(BUILT[process].sigma_min, rel=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_as_many_steps_as_were_trained(name: str):
    """diffusers#10003: `leading` used to run past the end of the table with all 1000 steps."""
    for steps in range(1, SHORT.steps + 1):
        assert (SCHEDULES[name](SHORT, steps).diff() < 0).all()
    if name in WHOLE:
        assert torch.equal(SCHEDULES[name](SHORT, 7)[:-1], SHORT.sigmas.flip(0))


# Those that visit the smallest σ of the process before the 0.
TO_THE_LAST = ("linspace", "karras", "exponential", "log-snr", "polyexponential", "kl-optimal")


# Lin et al. 2024, table 2, shifted from its time steps 1 … 1000 to 0 … 999; `leading` as in
# diffusers with steps_offset 1, which is Stable Diffusion's.
TABLE = {
    ("leading", 10): [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    ("trailing", 10): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    ("linspace", 10): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    ("leading", 3): [667, 334, 1],
    ("trailing", 3): [999, 666, 332],
    ("linspace", 2): [999, 0],
    ("trailing", 1): [999],
    ("linspace", 1): [999],
}


@pytest.mark.parametrize(("name", "steps"), TABLE)
def test_spacings_visit_the_published_time_steps(name: str, steps: int):
    process = BUILT["scaled-linear"]
    sigmas = SCHEDULES[name](process, steps)
    assert process.timestep(sigmas[:-1]).tolist() == TABLE[name, steps]


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_continuous_vp_is_spaced_as_in_k_diffusion(steps: int):
    theirs = k_diffusion_sampling().get_sigmas_vp(steps)
    ours = SCHEDULES["linspace"](ContinuousVP(), steps)
    # Theirs is float32, and loses digits to exp(…) − 1.
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-3, atol=0)
    if steps < 1000:
        torch.testing.assert_close(ours[:-2], theirs[:-2].double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 28, 1000])
def test_rectified_flow_is_spaced_as_in_diffusers(shift: float, steps: int):
    """Stable Diffusion 3's pipeline gives 1, …, 1/steps, to be shifted: our `trailing`."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    process = Flow(shift=shift)
    sigmas = SCHEDULES["trailing"](process, steps)
    theirs = scheduler.sigmas.double()
    torch.testing.assert_close(sigmas / (1 + sigmas), theirs, rtol=1e-5, atol=0)
    told = process.timestep(sigmas[:-1])
    torch.testing.assert_close(told, scheduler.timesteps.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_flow_sigmas_start_a_thousandth_below_pure_noise(steps: int):
    """`use_flow_sigmas` is `trailing`, but from t = 0.999, though it begins from noise alone."""
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    scheduler.set_timesteps(steps)
    process = Flow(shift=3.0)
    time = 0.999 * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    theirs = scheduler.sigmas[:-1].double()
    torch.testing.assert_close(process.std(time), theirs, rtol=1e-5, atol=0)
    assert theirs[0] < 0.9997
    assert process.timestep(SCHEDULES["trailing"](process, steps))[0] == 1000


@pytest.mark.parametrize("steps", [4, 5, 8, 10, 20, 25, 40, 50, 30, 7])
def test_trailing_is_the_sampling_that_sdxl_was_published_with(steps: int):
    """Of generative-models, which rounds down: the same, or at most one time step apart."""
    process = PROCESSES["scaled-linear"]()
    theirs = torch.tensor([int(999 - k * 999 / steps) for k in range(steps)])
    ours = process.timestep(SCHEDULES["trailing"](process, steps)[:-1]).round()
    if 1000 % steps == 0:
        assert torch.equal(ours, theirs.double())
    else:
        assert (ours - theirs).abs().max() <= 1


def test_sgm_uniform_is_trailing_without_rounding():
    """Whole where T − 1 divides, and the same as `trailing` where time has no steps."""
    process = DISCRETE["scaled-linear"]()
    times = process.timestep(SCHEDULES["sgm-uniform"](process, 9)[:-1])
    assert times.tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111]
    ve = BUILT["ve"]
    assert torch.allclose(SCHEDULES["sgm-uniform"](ve, 9), SCHEDULES["trailing"](ve, 9))


@pytest.mark.parametrize("steps", [1, 2, 10, 999])
def test_beta_places_quantiles_of_times(steps: int):
    """Against scipy's beta distribution; with α = β = 1 it is uniform."""
    process = DISCRETE["scaled-linear"]()
    share = [1 - k / steps for k in range(steps)]
    expected = 999 * torch.from_numpy(scipy.stats.beta.ppf(share, 0.6, 0.6))
    sigmas = SCHEDULES["beta"](process, steps)[:-1]
    torch.testing.assert_close(sigmas, process.sigma(expected), rtol=1e-9, atol=0)
    uniform = SCHEDULES["beta"](process, steps, alpha=1.0, beta=1.0)
    torch.testing.assert_close(uniform, SCHEDULES["sgm-uniform"](process, steps))


def test_beta_is_a_distribution_of_times_not_of_sigma():
    """Lee et al. 2024 place time steps; diffusers' `use_beta_sigmas` places σ (A1111#16926).

    Quantiles, either way, are the same. But Beta(0.6, 0.6) is symmetric: half of the steps have to
    be in the lower half of the time steps. Of theirs less than a quarter are.
    """
    steps = 101
    scheduler = EulerDiscreteScheduler(
        use_beta_sigmas=True, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    scheduler.set_timesteps(steps)
    process = DISCRETE["scaled-linear"]()
    share = torch.linspace(1, 0, steps, dtype=torch.float64)
    left = scheduler.alphas_cumprod.double()[[0, -1]]  # their ends, in float32
    low, high = ((1 - left) / left).sqrt()
    placed = low + (high - low) * beta_quantile(share, 0.6, 0.6)
    torch.testing.assert_close(placed, scheduler.sigmas[:-1].double(), rtol=1e-5, atol=0)

    theirs = (process.timestep(scheduler.sigmas[:-1]) < 499.5).double().mean()
    ours = (process.timestep(SCHEDULES["beta"](process, steps)[:-1]) < 499.5).double().mean()
    assert ours.item() == pytest.approx(0.5, abs=0.01)
    assert theirs < 0.25


@pytest.mark.parametrize("name", SCHEDULES)
def test_numbers_of_steps_that_cannot_be(name: str):
    for steps in (0, -3):
        with pytest.raises(UndustError, match=f"steps: {steps} is too few"):
            SCHEDULES[name](SHORT, steps)
    if name in WHOLE:
        with pytest.raises(UndustError, match="steps: 8 is more than the 7"):
            SCHEDULES[name](SHORT, 8)
    else:
        assert len(SCHEDULES[name](SHORT, 8)) == 9


def test_unknown_schedule():
    with pytest.raises(UndustError, match="unknown schedule 'karas'; did you mean 'karras'"):
        SCHEDULES["karas"]
