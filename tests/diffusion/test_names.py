"""The web UI's names: what they stand for there, and whom people mean by them here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import beta

from undust.diffusion import names
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
    for ours, known in ((names.SAMPLERS, SAMPLERS), (names.SCHEDULES, SCHEDULES)):
        assert ours.keys() <= known.keys()
        assert len(set(ours.values())) == len(ours)
        assert not set(ours.values()) & known.keys()


def test_samplers_are_called_as_their_functions_are():
    there = {theirs: name.replace("dpm_2", "dpm2") for theirs, name in FUNCTIONS.items()}
    ours = {theirs: ours.replace("-", "_") for theirs, ours in names.FROM_SAMPLERS.items()}
    assert ours == {**there, "DDPM": "ddpm"}  # which is ComfyUI's


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("theirs", sorted(names.FROM_SCHEDULES.keys() & PLACED.keys()))
def test_schedules_of_one_name_are_the_same_to_half_a_time_step(theirs: str, steps: int):
    ours = SCHEDULES[names.FROM_SCHEDULES[theirs]](PROCESS, steps)[:-1]
    placed = torch.from_numpy(PLACED[theirs](steps).copy())
    off = PROCESS.timestep(ours) - PROCESS.timestep(placed)
    assert off.abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("theirs", ["KL Optimal", "Align Your Steps", "Beta"])
def test_schedules_that_only_sound_the_same_have_no_name_in_common(theirs: str):
    sounds = theirs.lower().replace(" ", "-")
    ours, placed = SCHEDULES[sounds](PROCESS, 20)[:-1].numpy(), PLACED[theirs](20)[:20]
    assert np.abs(np.log(ours / placed)).max() > 0.1
    assert sounds not in names.SCHEDULES
    assert theirs not in names.FROM_SCHEDULES


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
        ("uni_pc", "", ""),
        ("deis", "", ""),
        ("euler_cfg_pp", "", ""),
        ("", "", ""),
    ],
)
def test_samplers_by_other_programs_names(said: str, sampler: str, schedule: str):
    assert names.elsewhere(said) == (sampler, schedule)


@pytest.mark.parametrize(
    ("said", "schedule"),
    [
        *(("normal", "linspace"), ("simple", "trailing"), ("ddim_uniform", "leading")),
        *(("sgm_uniform", "sgm-uniform"), ("Karras", "karras"), ("beta", ""), ("kl_optimal", "")),
    ],
)
def test_schedules_by_other_programs_names(said: str, schedule: str):
    assert names.schedule_elsewhere(said) == schedule
