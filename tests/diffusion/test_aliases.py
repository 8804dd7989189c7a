"""The web UI's names: what they stand for there, and whom people mean by them here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from peers import k_diffusion_sampling
from undust.diffusion import aliases
from undust.diffusion.noise import normal, uniform
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.diffusion.schedules.published import SD1
from undust.errors import UndustError

PROCESS = PROCESSES["scaled-linear"]()
TABLE = PROCESS.sigma(torch.arange(1000)).double().numpy()
LOW, HIGH = TABLE[0], TABLE[-1]

# k-diffusion's function that the web UI 1.10 runs under a name (its modules/sd_samplers_*.py).
FUNCTIONS = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_ancestral",
    "DPM fast": "dpm_fast",
    "DPM adaptive": "dpm_adaptive",
    "LCM": "lcm",
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "unipc",
}


def at(times: np.ndarray) -> np.ndarray:
    """σ at time steps between whole ones: even in log σ, as k-diffusion has it."""
    return np.exp(np.interp(times, np.arange(1000), np.log(TABLE)))


# What the web UI 1.10 places (its modules/sd_schedulers.py), in the words of mathematics.
PLACED: dict[str, Callable[[int], np.ndarray]] = {
    "SGM Uniform": lambda n: at(np.linspace(999, 0, n + 1)[:-1]),
    "Normal": lambda n: at(np.linspace(999, 0, n)),
    "Uniform": lambda n: at(np.linspace(999, 0, n)),
    "Simple": lambda n: TABLE[999 - (np.arange(n) * 1000) // n],
    "DDIM": lambda n: TABLE[1 :: 1000 // n][::-1],
    "KL Optimal": lambda n: np.tan(np.linspace(math.atan(HIGH), math.atan(LOW), n + 1)),
    "Align Your Steps": lambda n: np.exp(
        np.interp(np.linspace(0, 10, n), np.arange(11), np.log(SD1))
    ),
    "Beta": lambda n: LOW + (HIGH - LOW) * beta.ppf(np.linspace(1, 0, n), 0.6, 0.6),
}


def test_every_name_is_of_one_thing_that_there_is():
    for ours, known in ((aliases.SAMPLERS, SAMPLERS), (aliases.SCHEDULES, SCHEDULES)):
        assert ours.keys() <= known.keys()
        assert len(set(ours.values())) == len(ours)
        assert not set(ours.values()) & known.keys()


def test_samplers_are_called_as_their_functions_are():
    there = {theirs: name.replace("dpm_2", "dpm2") for theirs, name in FUNCTIONS.items()}
    ours = {theirs: ours.replace("-", "_") for theirs, ours in aliases.FROM_SAMPLERS.items()}
    ours |= {theirs: ours.replace("-", "_") for theirs, ours in aliases.NEAREST_SAMPLERS.items()}
    assert ours == {**there, "DDPM": "ddpm"}  # which is ComfyUI's
    assert not aliases.NEAREST_SAMPLERS.keys() & aliases.FROM_SAMPLERS.keys()


def placed(kind: str, steps: int) -> Tensor:
    """σ even in σ^(1/7), even in log σ, or uneven, by steps that are 13 times as long at most."""
    if kind == "uneven":
        levels = 14.6 * (-(0.05 + 0.6 * uniform(steps, (0, 0, 0), (steps,))).cumsum(0)).exp()
    else:
        k = torch.linspace(0, 1, steps, dtype=torch.float64)
        levels = 14.6 * (0.03 / 14.6) ** k
        if kind == "karras":
            levels = (14.6 ** (1 / 7) + k * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    return torch.cat([levels, levels.new_zeros(1)])


def ends(theirs: str, ours: str, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Where k-diffusion's function and our sampler end, with the same start and noise."""
    start = normal(1, (0, 0, 0), (1, 3, 4, 4)).double() * sigmas[0]

    def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        return torch.tanh(1.3 * x.roll(1, 1) / (1 + level**2).sqrt() + level.log() / 3)

    def draws() -> Callable[..., Tensor]:
        counter = count()
        return lambda *_: normal(2, (next(counter), 0, 0), (1, 3, 4, 4)).double()

    sample = getattr(k_diffusion_sampling(), f"sample_{FUNCTIONS[theirs]}")
    known = inspect.signature(sample).parameters
    options: dict[str, Any] = {"disable": True}
    if "sigmas" not in known:  # from one σ to another
        options |= {"sigma_min": sigmas[-2].item(), "sigma_max": sigmas[0].item()}
        options |= {"n": len(sigmas) - 1} if "n" in known else {}
    elif "noise_sampler" in known:
        options["noise_sampler"] = draws()
    if "sigmas" in known:
        options["sigmas"] = sigmas
    end = sample(denoise, start, **options)
    *_, last = SAMPLERS[ours](denoise, start, sigmas, draws())
    return end, last.x


IN_K_DIFFUSION = [theirs for theirs in FUNCTIONS if theirs not in ("LCM", "DDIM", "PLMS", "UniPC")]


@pytest.mark.parametrize("kind", ["karras", "exponential", "uneven"])
@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("theirs", IN_K_DIFFUSION)
def test_samplers_of_one_name_give_the_same_numbers(theirs: str, steps: int, kind: str):
    """Whether one name stands for both follows from the numbers; none is an exception."""
    ours = (aliases.FROM_SAMPLERS | aliases.NEAREST_SAMPLERS)[theirs]
    end, own = ends(theirs, ours, placed(kind, steps))
    if theirs in aliases.FROM_SAMPLERS:
        torch.testing.assert_close(own, end, rtol=0, atol=1e-8)
    elif (theirs, steps) != ("DPM++ 3M SDE", 2):  # where there are no three estimates yet
        assert (own - end).abs().max() > 1e-5


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential"])
def test_schedules_of_k_diffusion_are_the_same(name: str, steps: int):
    theirs = getattr(k_diffusion_sampling(), f"get_sigmas_{name}")(steps, LOW, HIGH)
    torch.testing.assert_close(SCHEDULES[name](PROCESS, steps).float(), theirs, rtol=2e-5, atol=0)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("theirs", sorted(aliases.FROM_SCHEDULES.keys() & PLACED.keys()))
def test_schedules_of_one_name_are_the_same_to_half_a_time_step(theirs: str, steps: int):
    ours = SCHEDULES[aliases.FROM_SCHEDULES[theirs]](PROCESS, steps)[:-1]
    placed = torch.from_numpy(PLACED[theirs](steps).copy())
    off = PROCESS.timestep(ours) - PROCESS.timestep(placed)
    assert off.abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("theirs", ["KL Optimal", "Align Your Steps", "Beta"])
def test_schedules_that_only_sound_the_same_have_no_name_in_common(theirs: str):
    sounds = theirs.lower().replace(" ", "-")
    ours, placed = SCHEDULES[sounds](PROCESS, 20)[:-1].numpy(), PLACED[theirs](20)[:20]
    assert np.abs(np.log(ours / placed)).max() > 0.1
    assert sounds not in aliases.SCHEDULES
    assert theirs not in aliases.FROM_SCHEDULES


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Euler a", "euler-ancestral"),
        ("euler_a", "euler-ancestral"),
        ("k_euler", "euler"),
        ("k_euler_a", "euler-ancestral"),
        ("DPM++ 2M Karras", "dpmpp-2m"),
        ("dpmpp_2m", "dpmpp-2m"),
        ("dpmpp_2m_sde_gpu", "dpmpp-2m-sde"),
        ("DPM2 Karras", "dpm2"),
        ("DPM2 a Karras", "dpm2-ancestral"),
        ("dpm_2_ancestral", "dpm2-ancestral"),
        ("DPM++ 3M SDE Exponential", "dpmpp-3m-sde"),
        ("LMS Karras", "lms"),
        ("uni_pc", "unipc"),
        ("Restart", "restart"),
        ("eulr", "euler"),
    ],
)
def test_a_sampler_by_another_name_is_pointed_to(said: str, meant: str):
    with pytest.raises(UndustError, match=f"did you mean '{meant}'"):
        SAMPLERS[said]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("normal", "linspace"),
        ("Uniform", "linspace"),
        ("simple", "trailing"),
        ("ddim_uniform", "leading"),
        ("DDIM", "leading"),
        ("sgm_uniform", "sgm-uniform"),
        ("kl_optimal", "kl-optimal"),
        ("Align Your Steps", "align-your-steps"),
        ("Karras", "karras"),
    ],
)
def test_a_schedule_by_another_name_is_pointed_to(said: str, meant: str):
    with pytest.raises(UndustError, match=f"did you mean '{meant}'"):
        SCHEDULES[said]


@pytest.mark.parametrize(
    ("said", "sampler", "schedule"),
    [
        ("euler", "euler", ""),
        ("dpmpp_2m_sde_gpu", "dpmpp-2m-sde", ""),
        ("dpm_2_ancestral", "dpm2-ancestral", ""),
        ("k_euler_a", "euler-ancestral", ""),
        ("dpmpp_2m_k", "dpmpp-2m", "karras"),
        ("kdpm_2_a_k", "dpm2-ancestral", "karras"),
        ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
        ("Euler A", "euler-ancestral", ""),
        ("k_lms_karras", "", "karras"),
        ("uni_pc", "", ""),
        ("deis", "", ""),
        ("euler_cfg_pp", "", ""),
        ("", "", ""),
    ],
)
def test_samplers_by_other_programs_names(said: str, sampler: str, schedule: str):
    assert aliases.elsewhere(said) == (sampler, schedule)
    assert aliases.nearest(said) == ("lms" if "lms" in said else "")


@pytest.mark.parametrize(
    ("said", "schedule"),
    [
        *(("normal", "linspace"), ("simple", "trailing"), ("ddim_uniform", "leading")),
        *(("sgm_uniform", "sgm-uniform"), ("Karras", "karras"), ("beta", ""), ("kl_optimal", "")),
    ],
)
def test_schedules_by_other_programs_names(said: str, schedule: str):
    assert aliases.schedule_elsewhere(said) == schedule
