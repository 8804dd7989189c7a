from __future__ import annotations

import pytest
import torch

from equations import denoiser_score, score_matching
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import DISCRETE, PROCESSES
from undust.diffusion.registry import build
from undust.diffusion.weighting import WEIGHTINGS
from undust.errors import UndustError

SIGMA = torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)
LEVEL = SIGMA.reshape(-1, 1, 1, 1)
X0, NOISE = (normal(seed, (0, 0, 0), (4, 3, 5, 5)).double() for seed in (0, 1))
X = X0 + LEVEL * NOISE
SNR = SIGMA**-2
VP = DISCRETE["scaled-linear"]()


@pytest.mark.parametrize("name", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0(name: str):
    """weight · ‖output − target‖² = min(SNR, 5) · ‖x0' − x0‖² for any output (Hang et al. 2023)."""
    prediction = PREDICTIONS[name]
    target = prediction.target(X0, NOISE, LEVEL)
    output = target + 0.1 * normal(2, (0, 0, 0), X0.shape)
    weighed = WEIGHTINGS["min-snr"](VP)(SIGMA, prediction) * (output - target).square().mean(
        (1, 2, 3)
    )
    x0_error = (prediction.to_x0(output, X, LEVEL) - X0).square().mean((1, 2, 3))
    torch.testing.assert_close(weighed, (1 / SIGMA**2).clamp(max=5) * x0_error)


def test_min_snr_is_the_published_formula():
    snr = 1 / SIGMA**2
    least = torch.minimum(snr, torch.tensor(5.0))
    weight = WEIGHTINGS["min-snr"](VP)
    torch.testing.assert_close(weight(SIGMA, PREDICTIONS["epsilon"]), least / snr)
    torch.testing.assert_close(weight(SIGMA, PREDICTIONS["v_prediction"]), least / (snr + 1))
    torch.testing.assert_close(weight(SIGMA, PREDICTIONS["sample"]), least)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_score_matching_is_every_networks_loss(process: str, prediction: str):
    """Seed 001, eq. 3 with γ = s², 1 and g²: the weighted error of any output, for any process.

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
    error = (output - target).square().sum((1, 2, 3))
    for text, gamma in {
        "snr": forward.std(time) ** 2,
        "score-matching": forward.std(time) ** 2,
        "score-matching:power=0": torch.ones_like(time),
        "score-matching:power=1": forward.std(time),
        "likelihood": forward.g(time) ** 2,
    }.items():
        loss = score_matching(gamma, predicted, score)
        weight = build(WEIGHTINGS, text, forward)(sigma, meaning)
        torch.testing.assert_close(weight * error, loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("process", DISCRETE)
def test_the_bound_is_the_divergence_of_the_steps(process: str):
    """KL of q(x_{t−1} | x_t, x0) from the same with another x0 (Ho et al. 2020, eq. 8 and 12)."""
    forward = DISCRETE[process](200)
    left, beta = forward.alphas_cumprod[1:], forward.betas[1:]
    before = forward.alphas_cumprod[:-1]
    variance = beta * (1 - before) / (1 - left)
    off = 0.1 * normal(3, (0, 0, 0), (199,)).double()  # the error of x0
    mean_off = before.sqrt() * beta / (1 - left) * off  # eq. 7
    divergence = mean_off**2 / (2 * variance)
    sigma = forward.sigmas[1:]
    weight = WEIGHTINGS["vlb"](forward)(sigma, PREDICTIONS["sample"])
    torch.testing.assert_close(weight * off**2, divergence)


def test_the_bound_of_fine_steps_is_half_the_likelihood_weight():
    """Song et al. 2021a, section 4: with ever finer steps the sum of KL is ½·∫g²·‖…‖²dt."""
    forward = DISCRETE["linear"](4000, 2.5e-5, 5e-3)
    sigma = forward.sigmas[400::400]
    for prediction in PREDICTIONS.values():
        bound = WEIGHTINGS["vlb"](forward)(sigma, prediction)
        rate = WEIGHTINGS["likelihood"](forward)(sigma, prediction)
        torch.testing.assert_close(bound, rate / 2, rtol=5e-3, atol=0)


def test_the_published_sum_of_simple_and_bound():
    weight = build(WEIGHTINGS, "vlb:simple=1,elbo=0.001", VP)
    sigma = VP.sigmas[::100]
    bound = WEIGHTINGS["vlb"](VP)(sigma, PREDICTIONS["epsilon"])
    torch.testing.assert_close(weight(sigma, PREDICTIONS["epsilon"]), 1 + 1e-3 * bound)
    second = WEIGHTINGS["vlb"](VP)(VP.sigmas[1:2], PREDICTIONS["epsilon"])
    torch.testing.assert_close(bound[0], second[0])


def test_forms_of_gamma_that_are_the_same():
    """In float64, where papers write one weight in two ways, or one is another's limit."""
    wide = torch.logspace(-3, 3, 50, dtype=torch.float64)

    def weight(text: str, prediction: str) -> torch.Tensor:
        return build(WEIGHTINGS, text, VP)(wide, PREDICTIONS[prediction])

    for same, own, prediction in (
        ("uniform", "snr", "epsilon"),
        ("uniform", "edm:sigma_data=1", "v_prediction"),
        ("uniform", "edm", "edm"),
        ("min-snr:gamma=1e9", "snr", "flow"),  # γ above every SNR
        ("uniform", "velocity:lowest=1e-6", "flow"),
        ("soft-min-snr:gamma=1", "p2", "sample"),
        ("p2:gamma=0", "snr", "sample"),
        ("p2:gamma=0.5,k=1e-12", "debiased", "score"),
    ):
        torch.testing.assert_close(
            weight(same, prediction), weight(own, prediction), rtol=1e-5, atol=0
        )
    soft, hard = weight("soft-min-snr", "sample"), weight("min-snr", "sample")
    assert (soft < hard).all()
    assert (soft / hard)[[0, -1]] == pytest.approx([1, 1], rel=1e-4)


def test_li_and_hes_loss_is_that_of_the_velocity():
    """‖(x0' − z)/(1 − t) − (x0 − z)/(1 − t)‖² with 1 − t at least 0.05 (algorithm 1)."""
    sigma = torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)
    t = 1 / (1 + sigma)  # of the picture
    z = t.reshape(-1, 1, 1, 1) * X0 + (1 - t).reshape(-1, 1, 1, 1) * NOISE
    output = X0 + 0.1 * normal(2, (0, 0, 0), X0.shape)
    v, own = ((x - z) / (1 - t).clamp(min=0.05).reshape(-1, 1, 1, 1) for x in (X0, output))
    weight = WEIGHTINGS["velocity"](PROCESSES["flow"]())(sigma, PREDICTIONS["sample"])
    error = (output - X0).square().mean((1, 2, 3))
    torch.testing.assert_close(weight * error, (own - v).square().mean((1, 2, 3)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", sorted(WEIGHTINGS.keys() - {"uniform", "vlb"}))
def test_a_weight_is_of_the_picture_whatever_the_network_predicts(name: str, prediction: str):
    """weight · ‖output − target‖² = (weight for x0) · ‖x0' − x0‖²."""
    meaning = PREDICTIONS[prediction]
    target = meaning.target(X0, NOISE, LEVEL)
    output = target + 0.1 * normal(2, (0, 0, 0), X0.shape)
    weight = WEIGHTINGS[name](VP)
    weighed = weight(SIGMA, meaning) * (output - target).square().mean((1, 2, 3))
    x0_error = (meaning.to_x0(output, X, LEVEL) - X0).square().mean((1, 2, 3))
    torch.testing.assert_close(weighed, weight(SIGMA, PREDICTIONS["sample"]) * x0_error)


# What papers write: the weight of the error of ε, or of x0, or of F.
PUBLISHED = {
    ("snr", "epsilon"): SNR**0,
    ("soft-min-snr", "sample"): 5 * SNR / (5 + SNR),
    ("p2", "epsilon"): 1 / (1 + SNR),
    ("debiased", "epsilon"): SNR**-0.5,
    ("edm", "sample"): (SIGMA**2 + 0.25) / (0.5 * SIGMA) ** 2,
    ("edm", "edm"): SNR**0,
    ("edm:sigma_data=1", "sample"): (SIGMA**2 + 1) / SIGMA**2,
    ("min-snr:gamma=2", "epsilon"): SNR.clamp(max=2) / SNR,
    ("soft-min-snr:gamma=2", "sample"): 2 * SNR / (2 + SNR),
    ("p2:gamma=0.5,k=3", "epsilon"): (3 + SNR) ** -0.5,
}


@pytest.mark.parametrize(("name", "prediction"), PUBLISHED)
def test_weights_are_the_published_formulas(name: str, prediction: str):
    weight = build(WEIGHTINGS, name, VP)(SIGMA, PREDICTIONS[prediction])
    torch.testing.assert_close(weight, PUBLISHED[name, prediction])


@pytest.mark.parametrize("name", PREDICTIONS)
def test_uniform_leaves_the_outputs_error_alone(name: str):
    assert torch.equal(WEIGHTINGS["uniform"](VP)(SIGMA, PREDICTIONS[name]), torch.ones_like(SIGMA))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_snr", "did you mean 'min-snr'"),
        ("min-snr:gama=3", "unknown setting of weighting min-snr 'gama'; did you mean 'gamma'"),
        ("min-snr:gamma=x", "gamma is 'x', not a number"),
        ("min-snr:gamma=0", "gamma: 0 is not above 0"),
        ("min-snr:gamma", "gamma is '', not a number"),
        ("uniform:gamma=3", "unknown setting of weighting uniform 'gamma'"),
        ("velocity:lowest=2", "lowest: 2 is not above 0 and at most 1"),
    ],
)
def test_names_and_settings_that_do_not_exist(text: str, said: str):
    with pytest.raises(UndustError, match=said):
        build(WEIGHTINGS, text, VP)
    with pytest.raises(UndustError, match="needs a discrete process"):
        WEIGHTINGS["vlb"](PROCESSES["flow"]())
