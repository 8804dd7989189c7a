from __future__ import annotations

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion.process import DISCRETE, VP, zero_terminal_snr
from undust.errors import UndustError
from undust.formats.scheduler import (
    BETA_SCHEDULES,
    CLASSES,
    OWN_CLASS,
    SCHEDULERS,
    read_scheduler,
    scheduler_config,
)

DDIM = {"_class_name": "DDIMScheduler"}


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_the_process_is_the_one_diffusers_has(schedule: str, prediction: str):
    theirs = diffusers.DDIMScheduler(
        beta_schedule=schedule, beta_start=0.00085, beta_end=0.012, prediction_type=prediction
    )
    process, name = read_scheduler({**DDIM, **theirs.config}, "here")
    assert name == prediction
    # diffusers computes its table in float32.
    torch.testing.assert_close(
        process.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=2e-4, atol=1e-9
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_every_scheduler_of_the_same_process_is_understood(kind: str, tmp_path):
    scheduler = getattr(diffusers, kind)(beta_schedule="scaled_linear", beta_end=0.012)
    process, prediction = read_scheduler({"_class_name": kind, **scheduler.config}, "here")
    assert prediction == "epsilon"
    assert process.betas[-1].item() == pytest.approx(0.012)


@pytest.mark.parametrize("kind", sorted(SCHEDULERS.keys() - {OWN_CLASS}))
def test_defaults_are_those_of_the_class(kind: str):
    theirs = getattr(diffusers, kind)()
    ours, prediction = read_scheduler({"_class_name": kind}, "here")
    told, told_prediction = read_scheduler({"_class_name": kind, **theirs.config}, "here")
    assert prediction == told_prediction
    assert told.sigma_max == ours.sigma_max
    if isinstance(ours, VP):
        torch.testing.assert_close(
            ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=2e-4, atol=1e-9
        )


# What older versions wrote, and what a change of scheduler leaves behind.
LEFT = {
    "denoise_final": True,
    "predict_epsilon": True,
    "tensor_format": "pt",
    "timestep_values": None,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
def test_what_is_left_of_others_plays_no_part(kind: str):
    stable = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = getattr(diffusers, kind).from_config({**stable, **LEFT})
    process, prediction = read_scheduler({"_class_name": kind, **stable, **LEFT}, "here")
    assert prediction == theirs.config.prediction_type == "epsilon"
    assert isinstance(process, VP)
    torch.testing.assert_close(process.betas, theirs.betas.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", DISCRETE)
def test_what_is_written_is_read_back_bit_for_bit(name: str, prediction: str):
    for arguments in ({}, {"steps": 50, "beta_start": 0.0012, "beta_end": 0.02}):
        process = DISCRETE[name](**arguments)
        again, prediction_again = read_scheduler(scheduler_config(process, prediction), "here")
        assert torch.equal(again.betas, process.betas)
        assert prediction_again == prediction


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_zero_terminal_snr_is_understood(schedule: str):
    """Both sides end in noise alone; ours is written as its betas, and is the same in diffusers."""
    theirs = diffusers.DDIMScheduler(
        beta_schedule=schedule, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    process, _ = read_scheduler({**DDIM, **theirs.config}, "here")
    again = scheduler_config(process, "v_prediction")
    assert torch.equal(read_scheduler(again, "here")[0].betas, process.betas)
    for scheduler in (theirs, diffusers.DDIMScheduler.from_config(again)):
        torch.testing.assert_close(
            process.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-7
        )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_noise_says_nothing_where_there_is_nothing_else(prediction: str):
    """Lin et al. 2024, §3.2: at SNR 0 the noise is all of x, and the picture remains unknown."""
    process = zero_terminal_snr(DISCRETE["scaled-linear"]())
    for config in (
        {**DDIM, "rescale_betas_zero_snr": True, "prediction_type": prediction},
        scheduler_config(process, prediction),  # its betas one by one
    ):
        if prediction == "epsilon":
            with pytest.raises(UndustError, match="here is not supported: prediction: epsilon"):
                read_scheduler(config, "here")
        else:
            assert read_scheduler(config, "here")[1] == prediction


def test_betas_of_no_schedule_are_written_one_by_one():
    process = VP(torch.rand(20, generator=torch.Generator().manual_seed(0)).double() * 0.1 + 1e-3)
    config = scheduler_config(process, "epsilon")
    assert torch.equal(read_scheduler(config, "here")[0].betas, process.betas)
    theirs = diffusers.DDIMScheduler.from_config(config)
    torch.testing.assert_close(theirs.betas.double(), process.betas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
def test_what_is_written_is_the_same_process_in_diffusers(name: str):
    process = DISCRETE[name]()
    theirs = diffusers.DDIMScheduler.from_config(scheduler_config(process, "v_prediction"))
    torch.testing.assert_close(
        theirs.alphas_cumprod.double(), process.alphas_cumprod, rtol=2e-4, atol=1e-9
    )
    assert theirs.config.prediction_type == "v_prediction"
    assert theirs.final_alpha_cumprod == 1
    theirs.set_timesteps(10)
    assert theirs.timesteps[-1] == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "FlowMatchLCMScheduler"}, "FlowMatchLCMScheduler'; supported: DDIM"),
        ({"_class_name": None}, "_class_name = None; supported: DDIMScheduler"),
        ({"_class_name": []}, r"_class_name = \[\]"),
        ({"rescale_betas_zero_snr": 3}, "rescale_betas_zero_snr = 3"),
        ({"use_flow_sigmas": 3}, "use_flow_sigmas"),
        ({"predict_epsilon": False}, "predict_epsilon = False"),
        ({"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'; supported: linear, scaled"),
        ({"prediction_type": "flow"}, "prediction_type = 'flow'; supported: epsilon"),
        ({"beta_start": 0}, "beta_start = 0"),
        ({"beta_end": float("nan")}, "beta_end = nan"),
        ({"num_train_timesteps": 1}, "num_train_timesteps = 1"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps = 1000000000"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas for 1000"),
        ({"beta_start": 1e-20, "beta_end": 1e-20}, "betas that are too small or too large"),
        ({"beta_start": 0.9, "beta_end": 0.9}, "betas that are too small or too large"),
        ({"num_train_timesteps": 2, "trained_betas": [1e-20, 0.5]}, "betas that are too small"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale = 3.0"),
        ({"shift": 3.0}, "shift = 3.0"),
        ({"two\nlines": 1}, r"'two\\nlines' = 1"),
        ({"half\ud800": 1}, r"the name of a field = 'half\\ud800'"),
        ({"_class_name": "D" * 9999}, "D+.*supported: DDIMScheduler"),
        ({"_class_name": [["a"] * 999] * 999}, "supported: DDIMScheduler"),
        ({"beta_start": [0] * 10**5}, r"beta_start = \[0, 0"),
        ({"trained_betas": [1] * 10**5}, r"trained_betas = \[1, .*every β has to be a number"),
        ({str(number): 0 for number in range(9999)}, "entries; at most 1,000 are read"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(changes: dict, reason: str):
    with pytest.raises(UndustError, match=reason) as caught:
        read_scheduler({**DDIM, **changes}, "scheduler/scheduler_config.json")
    assert str(caught.value).startswith("scheduler/scheduler_config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prediction", ["epsilom", "flow", "score", "edm"])
def test_what_diffusers_would_not_understand_is_not_written(prediction: str):
    with pytest.raises(UndustError, match=f"'{prediction}'; supported: epsilon"):
        scheduler_config(DISCRETE["linear"](), prediction)


FIELDS = st.sampled_from(
    [*scheduler_config(DISCRETE["linear"](), "epsilon"), "trained_betas", "use_flow_sigmas"]
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 1000)
    | st.floats()
    | st.sampled_from(
        ["linear", "scaled_linear", "squaredcos_cap_v2", "epsilon", "sample", "DDPMScheduler"]
    )
    | st.lists(st.floats(0, 1), max_size=3)
)


@given(fields=st.dictionaries(FIELDS | st.text(max_size=3), VALUES, max_size=6))
def test_any_object_gives_a_process_or_an_error(fields: dict):
    try:
        process, prediction = read_scheduler({**DDIM, **fields}, "here")
    except UndustError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(process, VP)
        assert bool((process.sigmas.diff() > 0).all())
        assert prediction in ("epsilon", "sample")
