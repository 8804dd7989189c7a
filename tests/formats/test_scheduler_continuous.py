"""Rectified flow and EDM in scheduler_config.json, held against diffusers' own classes."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS, prediction_on
from undust.diffusion.process import DISCRETE, EDM, VE, ContinuousVP, Flow, Process, SubVP
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.formats.scheduler import (
    EDM_CLASSES,
    EDM_PREDICTIONS,
    FLOW_CLASSES,
    FLOW_SIGMAS,
    OWN_CLASS,
    read_scheduler,
    scheduler_config,
)

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SIGMAS = {
    "_class_name": "UniPCMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
EDM_EULER = {"_class_name": "EDMEulerScheduler"}
OWN = {
    "_class_name": OWN_CLASS,
    "process": "flow",
    "arguments": {},
    "prediction_type": "v_prediction",
}
SHIFTS = [1.0, 3.0, 0.5]


def with_name(scheduler: Any) -> dict[str, Any]:
    """What its save_pretrained writes."""
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


# --- rectified flow --------------------------------------------------------------------------


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_the_flow_is_the_one_diffusers_has(kind: Any, shift: float):
    """Their table lists τ, from T down to 1, and what the network is told of it."""
    theirs = kind(num_train_timesteps=200, shift=shift)
    process, prediction = read_scheduler(with_name(theirs), "here")
    assert prediction == "flow"
    times = torch.arange(200, 1, -1, dtype=torch.float64) / 200
    times[0] = process.time_range[1]
    sigmas = process.sigma(times)
    torch.testing.assert_close(process.std(times).float(), theirs.sigmas[:199])
    torch.testing.assert_close(process.timestep(sigmas).float(), theirs.timesteps[:199])
    assert process.sigma_min == pytest.approx((theirs.sigmas[-1] / (1 - theirs.sigmas[-1])).item())


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", SHIFTS)
def test_trailing_is_where_stable_diffusion_3_is_sampled(shift: float, steps: int):
    """`trailing` are the even times 1, 1 − 1/n … that their pipelines hand to their scheduler."""
    process = Flow(shift)
    theirs = FlowMatchEulerDiscreteScheduler(shift=process.shift)
    theirs.set_timesteps(sigmas=(1 - torch.arange(steps) / steps).tolist())
    sigmas = SCHEDULES["trailing"](process, steps)
    torch.testing.assert_close((sigmas / (1 + sigmas)).float(), theirs.sigmas)
    torch.testing.assert_close(process.timestep(sigmas[:-1]).float(), theirs.timesteps)


def test_a_level_is_shifted_once():
    """Left to choose, theirs ends at a level shifted twice: its range is that of a shifted table.

    The last σ trained on is shift/(T − 1), which `linspace` visits; theirs stops far above.
    """
    process = Flow(3.0)
    theirs = FlowMatchEulerDiscreteScheduler(shift=process.shift)
    assert theirs.sigma_min / (1 - theirs.sigma_min) == pytest.approx(3 / 999, rel=1e-5)
    theirs.set_timesteps(10)
    assert theirs.sigmas[-2] / (1 - theirs.sigmas[-2]) == pytest.approx(9 / 999, rel=1e-2)
    assert SCHEDULES["linspace"](process, 10)[-2].item() == pytest.approx(3 / 999)


@pytest.mark.parametrize("kind", FLOW_SIGMAS)
def test_schedulers_with_flow_sigmas_are_rectified_flow(kind: str):
    """As Wan and Sana have it, with the fields of the β that they then do not use."""
    scheduler = getattr(diffusers, kind)
    asked = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    assert read_scheduler(with_name(scheduler(**asked)), "here") == (Flow(3.0), "flow")
    asked |= {"flow_shift": 1.0, "num_train_timesteps": 50}
    assert read_scheduler(with_name(scheduler(**asked)), "here") == (Flow(1.0, 50), "flow")


@pytest.mark.parametrize("prediction", ["flow", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_flow_that_is_written_is_sampled_by_euler(shift: float, steps: int, prediction: str):
    """Of even times, but from 1 − 1/T, where `trailing` begins at 1; no step differs from Euler's.

    Seen from x = x0 + σ·n, Euler's method goes straight towards x0.
    """
    process = Flow(shift)
    theirs = DPMSolverMultistepScheduler.from_config(scheduler_config(process, prediction))
    theirs.set_timesteps(steps)
    times = (1 - 1 / process.steps) * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    levels = process.std(times)
    torch.testing.assert_close(theirs.sigmas[:-1].double(), levels, rtol=1e-5, atol=0)
    assert theirs.sigmas[-1] == 0
    told = process.timestep(process.sigma(times))
    assert ((theirs.timesteps - told).abs() <= 1).all()  # in whole numbers
    sample, x0 = (normal(seed, (0, 0, 0), (1, 4, 4)).double() for seed in (0, 1))
    levels = theirs.sigmas.double()
    for level, below, told in zip(levels, levels[1:], theirs.timesteps, strict=False):
        flow = (sample - x0) / level  # n − x0, since sample = (1 − τ)·x0 + τ·n
        expected = sample + (below - level) * flow
        output = {"flow": flow, "sample": x0}[prediction]
        sample = theirs.step(output, told, sample).prev_sample
        torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)


# --- EDM ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", EDM_PREDICTIONS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_is_the_one_diffusers_has(kind: Any, sigma_data: float, prediction: str):
    """Its levels, and all four of Karras et al. 2022's coefficients (eq. 7)."""
    theirs = kind(
        sigma_max=120.0, sigma_data=sigma_data, prediction_type=EDM_PREDICTIONS[prediction]
    )
    process, name = read_scheduler(with_name(theirs), "here")
    assert (process, name) == (EDM(0.002, 120.0, sigma_data), prediction)
    theirs.set_timesteps(9)
    sigmas = SCHEDULES["karras"](process, 9)
    torch.testing.assert_close(sigmas.float(), theirs.sigmas)
    x, output = (normal(seed, (0, 0, 0), (4, 4)).double() for seed in (0, 1))
    for sigma in sigmas[:-1]:
        torch.testing.assert_close(process.timestep(sigma), theirs.precondition_noise(sigma))
        torch.testing.assert_close(
            x * process.input_scale(sigma), theirs.precondition_inputs(x, sigma)
        )
        torch.testing.assert_close(
            prediction_on(process, name).to_x0(output, x, sigma),
            theirs.precondition_outputs(x, output, sigma),
        )


def test_v_is_that_of_pictures_scaled_to_unit_deviation():
    """With sigma_data 1 it is v itself; with another, v of x/sigma_data at σ/sigma_data."""
    x0, noise = (normal(seed, (0, 0, 0), (4, 4)).double() for seed in (0, 1))
    sigma = torch.tensor(0.7, dtype=torch.float64)
    v = PREDICTIONS["v_prediction"]
    for data in (1.0, 0.5):
        on_edm = prediction_on(EDM(sigma_data=data), "v_prediction")
        target = on_edm.target(x0, noise, sigma)
        torch.testing.assert_close(target, v.target(x0 / data, noise, sigma / data))
        torch.testing.assert_close(on_edm.to_x0(target, x0 + sigma * noise, sigma), x0)


# --- what is written, what is refused --------------------------------------------------------

PROCESSES: list[tuple[Process, str]] = [
    (Flow(), "flow"),
    (Flow(shift=3.0, steps=50), "flow"),
    (EDM(), "edm"),
    (EDM(0.01, 700.0, 1.0), "v_prediction"),
    (Flow(2.0), "sample"),
    # Under a class name of ours.
    (Flow(2.0, 500), "v_prediction"),
    (EDM(sigma_data=1.0), "sample"),
    (VE(0.02, 40.0), "score"),
    (ContinuousVP(0.2, 10.0, 500), "epsilon"),
    (SubVP(), "v_prediction"),
]


@pytest.mark.parametrize(("process", "prediction"), PROCESSES)
def test_what_is_written_is_read_back(process: Process, prediction: str):
    config = scheduler_config(process, prediction)
    assert read_scheduler(config, "here") == (process, prediction)


@given(
    shift=st.floats(Flow.MIN_SHIFT, Flow.MAX_SHIFT),
    steps=st.integers(2, 100_000),
    low=st.floats(1e-6, 1.0),
    high=st.floats(1.5, 1e6),
    data=st.floats(1e-3, 1e3),
    prediction=st.sampled_from(sorted(EDM_PREDICTIONS)),
)
def test_every_process_of_the_kind_is_read_back(
    shift: float, steps: int, low: float, high: float, data: float, prediction: str
):
    for process, name in [(Flow(shift, steps), "flow"), (EDM(low, high, data), prediction)]:
        assert read_scheduler(scheduler_config(process, name), "here") == (process, name)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
        ({**FLOW, "invert_sigmas": True}, "invert_sigmas = True"),
        ({**FLOW, "shift": 0}, "shift = 0"),
        ({**FLOW, "shift": float("nan")}, "shift = nan"),
        ({**FLOW, "num_train_timesteps": 1}, "num_train_timesteps = 1"),
        ({**FLOW, "beta_start": 0.1}, "beta_start = 0.1"),
        ({**FLOW, "prediction_type": "epsilon"}, "prediction_type = 'epsilon'"),
        ({**SIGMAS, "prediction_type": "epsilon"}, "'epsilon'; supported: flow_prediction"),
        ({**SIGMAS, "prediction_type": "-"}, "prediction_type = '-'; supported: flow_pred"),
        ({**SIGMAS, "flow_shift": 0}, "flow_shift = 0"),
        ({**SIGMAS, "use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
        (
            {**SIGMAS, "_class_name": "DDIMScheduler"},
            "use_flow_sigmas: only supported for DPM",
        ),
        ({**EDM_EULER, "prediction_type": "sample"}, "'sample'; supported: epsilon, v_pred"),
        ({**EDM_EULER, "sigma_min": 0}, "sigma_min = 0"),
        ({**EDM_EULER, "sigma_min": 90}, r"sigma_min = 90.0 is not below 80.0"),
        ({**EDM_EULER, "sigma_max": float("inf")}, "sigma_max = inf"),
        ({**EDM_EULER, "sigma_data": -1}, "sigma_data = -1"),
        ({**EDM_EULER, "shift": 3.0}, "shift = 3.0"),
        ({**OWN, "process": "cosine"}, "process = 'cosine'"),
        ({**OWN, "arguments": {"low": 1}}, "'low' is not an argument of flow"),
        ({**OWN, "arguments": {"steps": 2.5}}, "steps = 2.5 is not a number of time steps"),
        ({**OWN, "arguments": {"shift": -1}}, "arguments = -1: has to be greater"),
        ({**OWN, "prediction_type": "epsilon"}, "epsilon does not work for a process that ends"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(fields: dict[str, Any], reason: str):
    with pytest.raises(UndustError, match=reason) as caught:
        read_scheduler(fields, "scheduler/scheduler_config.json")
    assert str(caught.value).startswith("scheduler/scheduler_config.json")
    assert "\n" not in str(caught.value)


def test_how_diffusers_would_sample_plays_no_part():
    """Stable Diffusion 3's file, and CosXL's."""
    flow: dict[str, Any] = {
        **FLOW,
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "shift_terminal": None,
        "use_dynamic_shifting": False,
    }
    assert read_scheduler(flow, "here") == (Flow(3.0), "flow")
    edm: dict[str, Any] = {
        **EDM_EULER,
        "final_sigmas_type": "zero",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rho": 7.0,
        "sigma_data": 1.0,
        "sigma_max": 120.0,
        "sigma_schedule": "exponential",
    }
    assert read_scheduler(edm, "here") == (EDM(0.002, 120.0, 1.0), "v_prediction")


def test_predictions_that_no_discrete_scheduler_has_are_not_written():
    with pytest.raises(UndustError, match="prediction_type = 'score'; supported: epsilon"):
        scheduler_config(DISCRETE["linear"](), "score")


FIELDS = st.sampled_from(
    [
        *("num_train_timesteps", "shift", "use_dynamic_shifting", "invert_sigmas", "max_shift"),
        *("sigma_min", "sigma_max", "sigma_data", "prediction_type", "rho", "beta_start"),
    ]
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 1000)
    | st.floats()
    | st.sampled_from(["epsilon", "v_prediction", "flow"])
)


@given(
    kind=st.sampled_from([*FLOW_CLASSES, *EDM_CLASSES]),
    fields=st.dictionaries(FIELDS | st.text(max_size=3), VALUES, max_size=5),
)
def test_any_object_gives_a_process_or_an_error(kind: str, fields: dict[str, Any]):
    try:
        process, prediction = read_scheduler({"_class_name": kind, **fields}, "here")
    except UndustError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < process.sigma_min < process.sigma_max < float("inf")
        assert prediction in ("flow", *EDM_PREDICTIONS)
