"""What AUTOMATIC1111's web UI calls samplers and schedules that are the same there as here.

Simple, Normal and DDIM may differ by the rounding to whole time steps. Some have the names of ours
and are others: its KL Optimal ends at the smallest σ and not at 0, its Align Your Steps visits the
last level of the table too, its Beta places σ instead of times, and its Restart takes what it
repeats out of the number of steps, so that fewer than 20 repeat nothing.
"""

from __future__ import annotations

import re

SAMPLERS = {  # ours -> theirs
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm-adaptive": "DPM adaptive",
    "dpm-fast": "DPM fast",
    "dpm2": "DPM2",
    "dpm2-ancestral": "DPM2 a",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-2s-ancestral": "DPM++ 2S a",
    "dpmpp-3m-sde": "DPM++ 3M SDE",
    "dpmpp-sde": "DPM++ SDE",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "unipc": "UniPC",
}
SCHEDULES = {
    "exponential": "Exponential",
    "karras": "Karras",
    "leading": "DDIM",
    "linspace": "Normal",
    "polyexponential": "Polyexponential",
    "sgm-uniform": "SGM Uniform",
    "trailing": "Simple",
}
# Theirs -> ours. Their Uniform is their Normal.
FROM_SAMPLERS = {theirs: ours for ours, theirs in SAMPLERS.items()}
FROM_SCHEDULES = {theirs: ours for ours, theirs in SCHEDULES.items()} | {"Uniform": "linspace"}

# What else people may say, and what of ours is nearest: samplers and schedules used to be one name.
ALSO_SAMPLERS = {
    f"{theirs} {schedule}": ours
    for theirs, ours in FROM_SAMPLERS.items()
    for schedule in ("Karras", "Exponential")
}
ALSO_SCHEDULES = {"DDIM Uniform": "leading"}

# Names as functions and configuration files have them, in lower case: ComfyUI, InvokeAI, NovelAI.
# UniPC is left out: its order and variant there are others.
_FUNCTIONS = {ours.replace("-", "_"): ours for ours in SAMPLERS if ours != "unipc"}
_FUNCTION_SCHEDULES = {
    theirs.lower().replace(" ", "_"): ours for theirs, ours in FROM_SCHEDULES.items()
} | {"ddim_uniform": "leading"}
_TAILS = {tail: ours for tail, ours in _FUNCTION_SCHEDULES.items() if tail != "ddim"}
_TAILS["k"] = "karras"  # as in InvokeAI's dpmpp_2m_k


def elsewhere(name: str) -> tuple[str, str]:
    """Our sampler, and the schedule in its name, for another program's name; "" where unknown.

    "dpmpp_2m_sde_gpu", "k_euler_a", "dpmpp_2m_k" and "DPM++ 2M Karras" are such names.
    """
    text, schedule = _function(name).removeprefix("k_").removesuffix("_gpu"), ""
    for tail, ours in _TAILS.items():
        if text.endswith(f"_{tail}"):
            text, schedule = text.removesuffix(f"_{tail}"), ours
            break
    text = re.sub(r"^k?dpm_2(?=_|$)", "dpm2", text)
    text = re.sub(r"_a$", "_ancestral", text)
    sampler = _FUNCTIONS.get(text, "")
    return (sampler, schedule) if sampler else ("", "")


def schedule_elsewhere(name: str) -> str:
    """Our schedule for another program's name, such as "sgm_uniform"; "" where unknown."""
    return _FUNCTION_SCHEDULES.get(_function(name), "")


def _function(name: str) -> str:
    """A name in lower case with underscores, as functions are called."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower().replace("++", "pp"))
