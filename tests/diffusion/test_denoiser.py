from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.noise import normal
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import PROCESSES


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
