from __future__ import annotations

import pytest
import torch
from scipy.stats import norm

from equations import denoiser_score, score_matching
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import PROCESSES
from undust.diffusion.weighting import WEIGHTINGS, lognormal
from undust.errors import UndustError

SIGMA = torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)
LEVEL = SIGMA.reshape(-1, 1, 1, 1)
X0, NOISE = (normal(seed, (0, 0, 0), (4, 3, 5, 5)).double() for seed in (0, 1))
X = X0 + LEVEL * NOISE
SNR = SIGMA**-2


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


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_score_matching_is_every_networks_loss(process: str, prediction: str):
    """Seed 001, eq. 3 with γ = s²: the error of any output, weighted by `snr`, for any process.

    The score in x_t = α·x given x0, its error by way of the x0 that the output stands for.
    """
    forward, meaning = PROCESSES[process](), PREDICTIONS[prediction]
    top = forward.sigma_max / 2
    sigma = torch.tensor([top / 100, top / 10, top / 2, top], dtype=torch.float64).clamp(max=1e4)
    time = forward.time(sigma)
    sigma = forward.sigma(time)
    level, broad = sigma.reshape(-1, 1, 1, 1), time.reshape(-1, 1, 1, 1)
    x = X0 + level * NOISE
    target = meaning.target(X0, NOISE, level)
    output = target + 0.1 * normal(2, (0, 0, 0), X0.shape)
    own = forward.alpha(broad) * x
    predicted = denoiser_score(forward, own, broad, meaning.to_x0(output, x, level))
    score = -NOISE / forward.std(broad)
    loss = score_matching(forward.std(time) ** 2, predicted, score)
    error = (output - target).square().sum((1, 2, 3))
    torch.testing.assert_close(WEIGHTINGS["snr"](sigma, meaning) * error, loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "uniform"])
def test_a_weight_is_of_the_picture_whatever_the_network_predicts(name: str, prediction: str):
    """weight · ‖output − target‖² = (weight for x0) · ‖x0' − x0‖²."""
    meaning = PREDICTIONS[prediction]
    target = meaning.target(X0, NOISE, LEVEL)
    output = target + 0.1 * normal(2, (0, 0, 0), X0.shape)
    weighed = WEIGHTINGS[name](SIGMA, meaning) * (output - target).square().mean((1, 2, 3))
    x0_error = (meaning.to_x0(output, X, LEVEL) - X0).square().mean((1, 2, 3))
    torch.testing.assert_close(weighed, WEIGHTINGS[name](SIGMA, PREDICTIONS["sample"]) * x0_error)


# What papers write: the weight of the error of ε, or of x0, or of F.
PUBLISHED = {
    ("snr", "epsilon"): SNR**0,
    ("soft-min-snr", "sample"): 5 * SNR / (5 + SNR),
    ("p2", "epsilon"): 1 / (1 + SNR),
    ("debiased", "epsilon"): SNR**-0.5,
    ("edm", "sample"): (SIGMA**2 + 0.25) / (0.5 * SIGMA) ** 2,
    ("edm", "edm"): SNR**0,
}


@pytest.mark.parametrize(("name", "prediction"), PUBLISHED)
def test_weights_are_the_published_formulas(name: str, prediction: str):
    weight = WEIGHTINGS[name](SIGMA, PREDICTIONS[prediction])
    torch.testing.assert_close(weight, PUBLISHED[name, prediction])


def test_lognormal_in_sigma_is_logit_normal_in_rectified_flow():
    """Quantiles: log σ of Karras et al. 2022, and τ of Esser et al. 2024 with the unit normal."""
    share = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    expected = torch.from_numpy(norm.ppf(share.numpy(), -1.2, 1.2))
    torch.testing.assert_close(lognormal(share).log(), expected)
    tau = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    below = torch.from_numpy(norm.cdf(tau.logit().numpy()))
    sigma = lognormal(below, mean=0.0, deviation=1.0)
    torch.testing.assert_close(sigma / (1 + sigma), tau)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_uniform_leaves_the_outputs_error_alone(name: str):
    assert torch.equal(WEIGHTINGS["uniform"](SIGMA, PREDICTIONS[name]), torch.ones_like(SIGMA))


def test_unknown_names():
    with pytest.raises(UndustError, match="did you mean 'min-snr'"):
        WEIGHTINGS["min_snr"]
