from __future__ import annotations

import pytest
import torch

from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.weighting import WEIGHTINGS
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


@pytest.mark.parametrize("name", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0(name: str):
    """weight · ‖output − target‖² = min(SNR, 5) · ‖x0' − x0‖² for any output (Hang et al. 2023)."""
    prediction = PREDICTIONS[name]
    target = prediction.target(X0, NOISE, LEVEL)
    output = target + 0.1 * normal(2, (0, 0, 0), X0.shape)
    weighed = WEIGHTINGS["min-snr"](SIGMA, prediction) * (output - target).square().mean((1, 2, 3))
    x0_error = (prediction.to_x0(output, X, LEVEL) - X0).square().mean((1, 2, 3))
    torch.testing.assert_close(weighed, (1 / SIGMA**2).clamp(max=5) * x0_error)


def test_min_snr_is_the_published_formula():
    snr = 1 / SIGMA**2
    least = torch.minimum(snr, torch.tensor(5.0))
    weight = WEIGHTINGS["min-snr"]
    torch.testing.assert_close(weight(SIGMA, PREDICTIONS["epsilon"]), least / snr)
    torch.testing.assert_close(weight(SIGMA, PREDICTIONS["v_prediction"]), least / (snr + 1))
    torch.testing.assert_close(weight(SIGMA, PREDICTIONS["sample"]), least)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_uniform_leaves_the_outputs_error_alone(name: str):
    assert torch.equal(WEIGHTINGS["uniform"](SIGMA, PREDICTIONS[name]), torch.ones_like(SIGMA))


def test_unknown_names():
    with pytest.raises(UndustError, match="did you mean 'epsilon'"):
        PREDICTIONS["epsillon"]
    with pytest.raises(UndustError, match="did you mean 'min-snr'"):
        WEIGHTINGS["min_snr"]
