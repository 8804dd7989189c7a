"""The moving average against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undust.training.ema import Ema, exchange


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_is_the_average_that_its_decay_says(decay: float):
    """a ← k·a + (1 − k)·w with k = min(decay, (1 + n)/(10 + n)), in float64."""
    live = nn.Parameter(torch.tensor([1.0, -2.0]))
    ema = Ema({"w": live}, decay)
    expected = live.detach().double()
    for step in range(50):
        with torch.no_grad():
            live += torch.tensor([0.1, 0.3]) * step
        ema.update(step)
        keep = min(decay, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * live.detach().double()
    torch.testing.assert_close(ema.average["w"], expected.float())


def test_without_decay_the_average_is_the_weights():
    live = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"w": live}, 0.0)
    with torch.no_grad():
        live += 3
    ema.update(0)
    assert torch.equal(ema.average["w"], live.detach())


def test_swapping_twice_changes_nothing_and_once_everything():
    live = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"w": live}, 0.9)
    with torch.no_grad():
        live += 4
    exchange({"w": live}, ema.average)
    assert (live.item(), ema.average["w"].item()) == (1, 5)
    exchange({"w": live}, ema.average)
    assert (live.item(), ema.average["w"].item()) == (5, 1)


def test_it_takes_the_average_of_a_checkpoint():
    ema = Ema({"w": nn.Parameter(torch.tensor([1.0]))}, 0.9)
    ema.load({"w": torch.tensor([7.0])})
    assert ema.average["w"].item() == 7
