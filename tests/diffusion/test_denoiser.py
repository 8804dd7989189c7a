from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import PROCESSES
from undust.diffusion.weighting import WEIGHTINGS


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 5, 4, 2, 2)])
def test_a_perfect_network_is_a_perfect_denoiser(name: str, shape: tuple[int, ...]):
    """Pictures and frames alike: whatever the network predicts, x0 comes out."""
    process, prediction = PROCESSES["scaled-linear"](), PREDICTIONS[name]
    x0, noise = normal(0, (0, 0, 0), shape), normal(1, (0, 0, 0), shape)
    sigma = process.sigmas[[10, 400, 900]].float()
    level = sigma.reshape(-1, *[1] * (len(shape) - 1))
    seen: list[Tensor] = []

    def network(scaled: Tensor, timestep: Tensor, cond: str) -> Tensor:
        assert cond == "asked"
        assert timestep.dtype == torch.float32
        seen.extend([scaled, timestep])
        return prediction.target(x0, noise, level)

    x = x0 + level * noise
    denoised = NetworkDenoiser(network, process, prediction)(x, sigma, "asked")
    torch.testing.assert_close(denoised, x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0], x / (1 + level**2).sqrt())
    assert seen[1].tolist() == [10, 400, 900]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_network_of_any_process(name: str, prediction: str):
    """It is shown x as its process scales it, and told σ as its process says it."""
    process, meaning = PROCESSES[name](), PREDICTIONS[prediction]
    sigma = torch.tensor([0.1, 1.0, 9.0])
    level = sigma.reshape(3, 1)
    x0, noise = normal(0, (0, 0, 0), (3, 5)), normal(1, (0, 0, 0), (3, 5))
    x = x0 + level * noise

    def network(seen: Tensor, timestep: Tensor, cond: None) -> Tensor:
        torch.testing.assert_close(seen, x * process.input_scale(level))
        torch.testing.assert_close(timestep, process.timestep(sigma).float())
        return meaning.target(x0, noise, level)

    denoised = NetworkDenoiser(network, process, meaning)(x, sigma, None)
    torch.testing.assert_close(denoised, x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS.keys() - {"vlb"}))
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_loss_of_an_output_that_is_off_by_a_known_error(
    name: str, prediction: str, weighting: str
):
    """w(σ) · mean(e²) for each picture or film, and 0 for a perfect network."""
    process, meaning = PROCESSES[name](), PREDICTIONS[prediction]
    weight = WEIGHTINGS[weighting](process)
    sigma = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    shape = (3, 5, 4, 2, 2)
    x0, noise, error = (normal(seed, (0, 0, 0), shape) for seed in range(3))
    level = sigma.float().reshape(3, 1, 1, 1, 1)

    def loss(error: Tensor) -> Tensor:
        def network(seen: Tensor, timestep: Tensor, cond: str) -> Tensor:
            assert cond == "asked"
            torch.testing.assert_close(seen, (x0 + level * noise) * process.input_scale(level))
            assert torch.equal(timestep, process.timestep(sigma).float())
            return meaning.target(x0, noise, level) + error

        denoiser = NetworkDenoiser(network, process, meaning)
        return denoiser.loss(x0, noise, sigma, "asked", weight)

    assert loss(torch.zeros(())).tolist() == [0, 0, 0]
    expected = weight(sigma, meaning) * torch.stack([e.double().square().mean() for e in error])
    torch.testing.assert_close(loss(error).double(), expected, rtol=1e-3, atol=1e-6)
