"""Names of samplers and schedules in AUTOMATIC1111's web UI and other programs.

A sampler is the same if its steps are: with the same σ and noise both give the same numbers
(tests/diffusion/test_aliases.py, against k-diffusion). The σ may differ: the web UI omits the last
but one for DPM2 and DPM2 a; DDIM, PLMS and UniPC have time steps of their own.

Some have the same name as ours and differ. Samplers: see NEAREST_SAMPLERS. Schedules: the web UI's
KL Optimal ends at the smallest σ and not at 0, its Align Your Steps includes the last level of the
table, its Beta places σ instead of times. Its Restart counts repeated steps, so that fewer than 20
steps repeat none. Simple, Normal and DDIM may differ by the rounding to integer time steps.
"""

from __future__ import annotations

import re

SAMPLERS = {  # ours -> theirs
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm2": "DPM2",
    "dpm2-ancestral": "DPM2 a",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-2s-ancestral": "DPM++ 2S a",
    "dpmpp-sde": "DPM++ SDE",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
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
# Theirs -> the nearest of ours, which gives other numbers. DPM++ 3M SDE halves the third-order
# term; LMS carries its polynomial on to σ = 0; DPM fast and DPM adaptive stop at the smallest σ,
# with its noise, and DPM adaptive's steps depend on the other pictures of the batch.
NEAREST_SAMPLERS = {
    "DPM adaptive": "dpm-adaptive",
    "DPM fast": "dpm-fast",
    "DPM++ 3M SDE": "dpmpp-3m-sde",
    "LMS": "lms",
}
# Theirs -> ours. Their Uniform is their Normal.
FROM_SAMPLERS = {theirs: ours for ours, theirs in SAMPLERS.items()}
FROM_SCHEDULES = {theirs: ours for ours, theirs in SCHEDULES.items()} | {"Uniform": "linspace"}

# Other names and the nearest of ours; names used to combine sampler and schedule.
ALSO_SAMPLERS = NEAREST_SAMPLERS | {
    f"{theirs} {schedule}": ours
    for theirs, ours in (FROM_SAMPLERS | NEAREST_SAMPLERS).items()
    for schedule in ("Karras", "Exponential")
}
ALSO_SCHEDULES = {"DDIM Uniform": "leading"}

# Names of functions and in configuration files, in lower case: ComfyUI, InvokeAI, NovelAI.
# Without UniPC, which has another order and variant there.
_FUNCTIONS = {ours.replace("-", "_"): ours for ours in SAMPLERS if ours != "unipc"}
_NEAREST = {ours.replace("-", "_"): ours for ours in NEAREST_SAMPLERS.values()}
_FUNCTION_SCHEDULES = {
    theirs.lower().replace(" ", "_"): ours for theirs, ours in FROM_SCHEDULES.items()
} | {"ddim_uniform": "leading"}
_TAILS = {tail: ours for tail, ours in _FUNCTION_SCHEDULES.items() if tail != "ddim"}
_TAILS["k"] = "karras"  # as in InvokeAI's dpmpp_2m_k


def elsewhere(name: str) -> tuple[str, str]:
    """Our sampler, and the schedule in its name, for another program's name; "" where unknown.

    "dpmpp_2m_sde_gpu", "k_euler_a", "dpmpp_2m_k" and "DPM++ 2M Karras" are such names.
    """
    text, schedule = _parts(name)
    sampler = _FUNCTIONS.get(text, "")
    return sampler, schedule if sampler or text in _NEAREST else ""


def nearest(name: str) -> str:
    """Our sampler of the same name as another program's that differs from it; "" for none."""
    return _NEAREST.get(_parts(name)[0], "")


def no_counterpart(field: str, name: str, program: str = "") -> str:
    """The note on another program's sampler or schedule that is not known here."""
    near = nearest(name) if field == "sampler" else ""
    whose = f"{program}'s " if program else ""
    hint = f"; {near} is similar, with different results" if near else ""
    return f"{field}: {whose}'{name}' has no known counterpart here{hint}"


def _parts(name: str) -> tuple[str, str]:
    """A sampler's name in function form without its schedule, and our schedule or ""."""
    text, schedule = _function(name).removeprefix("k_").removesuffix("_gpu"), ""
    for tail, ours in _TAILS.items():
        if text.endswith(f"_{tail}"):
            text, schedule = text.removesuffix(f"_{tail}"), ours
            break
    text = re.sub(r"^k?dpm_2(?=_|$)", "dpm2", text)
    text = re.sub(r"^dpmpp(?=\d)", "dpmpp_", text)  # dpm++2m, as stable-diffusion.cpp has it
    return re.sub(r"_a$", "_ancestral", text), schedule


def schedule_elsewhere(name: str) -> str:
    """Our schedule for another program's name, such as "sgm_uniform"; "" where unknown."""
    return _FUNCTION_SCHEDULES.get(_function(name), "")


def _function(name: str) -> str:
    """A name in lower case with underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower().replace("++", "pp"))
