from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

from processes import BUILT
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS, edm, prediction_on
from undust.diffusion.process import EDM
from undust.diffusion.process.base import SIGMA_INF
from undust.errors import UndustError

SIGMA = torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)
LEVEL = SIGMA.reshape(-1, 1, 1, 1)
X0, NOISE = (normal(seed, (0, 0, 0), (4, 3, 5, 5)).double() for seed in (0, 1))
X = X0 + LEVEL * NOISE


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_target_is_read_back_as_the_clean_picture(name: str):
    prediction = PREDICTIONS[name]
    target = prediction.target(X0, NOISE, LEVEL)
    torch.testing.assert_close(prediction.to_x0(target, X, LEVEL), X0)


def test_targets_are_the_published_ones():
    """ε and x0 themselves; v = α·ε − β·x0 with α² + β² = 1 and β/α = σ (Salimans & Ho 2022)."""
    angle = LEVEL.atan()
    assert torch.equal(PREDICTIONS["epsilon"].target(X0, NOISE, LEVEL), NOISE)
    assert torch.equal(PREDICTIONS["sample"].target(X0, NOISE, LEVEL), X0)
    torch.testing.assert_close(
        PREDICTIONS["v_prediction"].target(X0, NOISE, LEVEL),
        angle.cos() * NOISE - angle.sin() * X0,
    )


def test_flow_is_the_slope_of_the_straight_line():
    """d/dτ of (1 − τ)·x0 + τ·n at τ = σ/(1 + σ), and x0 where the line comes to τ = 0."""
    tau = LEVEL / (1 + LEVEL)
    velocity = PREDICTIONS["flow"].target(X0, NOISE, LEVEL)
    on_the_line = X / (1 + LEVEL)
    torch.testing.assert_close(on_the_line + 0.1 * velocity, (0.9 - tau) * X0 + (tau + 0.1) * NOISE)
    torch.testing.assert_close(on_the_line - tau * velocity, X0)


def test_score_is_the_slope_of_the_log_density():
    """Of x = x0 + σ·n given x0, by autograd."""
    x = X.clone().requires_grad_()
    log_density = -((x - X0) ** 2 / (2 * LEVEL**2)).sum()
    (slope,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(PREDICTIONS["score"].target(X0, NOISE, LEVEL), slope)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_preconditioned_as_published(sigma_data: float):
    """As diffusers does it; and F has variance 1 where pictures have sigma_data's."""
    theirs = EDMEulerScheduler(sigma_data=sigma_data)
    output = normal(2, (0, 0, 0), X0.shape).double()
    for x, sigma in zip(X, SIGMA, strict=True):
        expected = theirs.precondition_outputs(x, output, sigma)
        torch.testing.assert_close(edm(sigma_data).to_x0(output, x, sigma), expected)
    long = [normal(seed, (0, 0, 0), (100_000,)).double() for seed in (3, 4)]
    for sigma in SIGMA:
        target = edm(sigma_data).target(sigma_data * long[0], long[1], sigma)
        assert target.var().item() == pytest.approx(1, abs=0.02)


def test_edm_of_unit_data_is_minus_v():
    v = PREDICTIONS["v_prediction"].target(X0, NOISE, LEVEL)
    torch.testing.assert_close(edm(1.0).target(X0, NOISE, LEVEL), -v)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_what_tells_a_picture_from_noise_alone(name: str):
    """float32 at the σ that stands for ∞: ε and the score drown in it, the others do not."""
    x0, noise, sigma = X0.float(), NOISE.float(), torch.tensor(SIGMA_INF)
    prediction = PREDICTIONS[name]
    read = prediction.to_x0(prediction.target(x0, noise, sigma), x0 + sigma * noise, sigma)
    assert ((read - x0).abs().max() < 1e-5) == (name not in ("epsilon", "score"))


@pytest.mark.parametrize("process", [*BUILT, "svd"])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_network_is_told_what_its_process_lets_it_mean(name: str, process: str):
    """Refused where the test above fails; F and v = −F are of EDM's own sigma_data."""
    forward = {**BUILT, "svd": EDM(highest=700.0, sigma_data=1.0)}[process]
    if forward.ends_in_noise and name in ("epsilon", "score"):
        with pytest.raises(UndustError, match=f"prediction: {name} does not work for a process"):
            prediction_on(forward, name)
    elif not isinstance(forward, EDM):
        assert prediction_on(forward, name) is PREDICTIONS[name]
    else:
        target = prediction_on(forward, name).target(X0, NOISE, LEVEL)
        edm_target = edm(forward.sigma_data).target(X0, NOISE, LEVEL)
        expected = {"edm": edm_target, "v_prediction": -edm_target}
        own = PREDICTIONS[name].target(X0, NOISE, LEVEL)
        torch.testing.assert_close(target, expected.get(name, own))


def test_unknown_names():
    with pytest.raises(UndustError, match="did you mean 'epsilon'"):
        prediction_on(EDM(), "epsillon")
    with pytest.raises(UndustError, match="did you mean 'epsilon'"):
        PREDICTIONS["epsillon"]
