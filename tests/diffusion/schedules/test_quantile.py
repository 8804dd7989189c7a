from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import scipy.stats
import torch

from undust.diffusion.schedules.quantile import beta_quantile

# Above the half of the share it is the quantile of b and a, so that a pair stands for both orders.
PAIRS = [*combinations_with_replacement([0.3, 0.6, 1.0, 2.5, 5.0], 2), (5.0, 0.3), (2.5, 0.6)]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_quantiles_are_scipys(a: float, b: float):
    share = torch.linspace(0, 1, 201, dtype=torch.float64)
    expected = torch.from_numpy(scipy.stats.beta.ppf(share.numpy(), a, b))
    ours = beta_quantile(share, a, b)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(1 - ours, 1 - expected, rtol=1e-9, atol=1e-15)
    assert ours[0].item() == pytest.approx(0, abs=1e-20)
    assert ours[-1] == 1


def test_quantiles_of_beta_half_half_are_the_arcsines():
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    expected = (share * torch.pi / 2).sin() ** 2
    torch.testing.assert_close(beta_quantile(share, 0.5, 0.5), expected, rtol=1e-12, atol=1e-15)
