from __future__ import annotations

import math

import pytest
import torch

from undust.diffusion.guidance import ClassifierFree, ScaleTable, spread
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError

SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.0], dtype=torch.float64)


def test_each_step_has_its_own_scale(world):
    """Euler's method by hand, with another scale at each step."""
    p, n = world.mean(1), world.mean(2)
    scales = torch.tensor([1.0, 5.0, -2.0])
    guided = ClassifierFree(world.asked(p), world.asked(n), ScaleTable(scales, SIGMAS))
    *_, last = SAMPLERS["euler"](guided, world.x, SIGMAS, lambda *_: world.x)
    assert world.calls == [3, 6, 6]
    x = world.x
    for scale, sigma, after in zip(scales, SIGMAS[:-1], SIGMAS[1:], strict=True):
        world.x, world.sigma = x, sigma.expand(3)
        x0 = world.exact(n + scale * (p - n))
        x = x0 + after / sigma * (x - x0)
    torch.testing.assert_close(last.x, x)


@pytest.mark.parametrize("level", [8.0, 5.0, 3.0000001, 3.0, 2.0, 1.0, 0.5, 9.0])
def test_a_row_holds_down_to_the_next_step(level: float):
    """Samplers ask between the steps too, and in float32."""
    row = ScaleTable(torch.tensor([0, 1, 2]), SIGMAS)(torch.tensor(level).float().item())
    assert row == {8: 0, 5: 0, 9: 0, 3: 1, 2: 1, 1: 2, 0: 2}[int(level)]


def test_each_frame_has_its_own_scale(world):
    video = type(world)(world.x[:, None].repeat(1, 3, 1, 1, 1), world.sigma)
    p, n = video.mean(1), video.mean(2)
    table = ScaleTable(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([2.0, 0.0]))
    guided = ClassifierFree(video.asked(p), video.asked(n), table)(video.x, video.sigma)
    for frame, scale in enumerate((1.0, 2.0, 4.0)):
        expected = video.exact(n + scale * (p - n))[:, frame]
        torch.testing.assert_close(guided[:, frame], expected)
    video.calls.clear()
    ones = ClassifierFree(video.asked(p), video.asked(n), lambda _: torch.ones(3))
    assert torch.equal(ones(video.x, video.sigma), video.exact(p))
    assert video.calls == [3, 3]


def test_values_are_spread_over_any_number_of_steps():
    values = torch.tensor([8.0, 2.0, 4.0], dtype=torch.float64)
    assert torch.equal(spread(values, 3), values)
    expected = torch.tensor([8.0, 5.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(spread(values, 5), expected)
    assert spread(values[:1], 4).tolist() == [8.0] * 4
    assert spread(values, 1).tolist() == [8.0]
    assert spread(values[:, None].expand(3, 2), 5).shape == (5, 2)


def test_tables_that_do_not_fit(world):
    for shape in [(2,), (4,), (3, 2, 2), ()]:
        with pytest.raises(UndustError, match=r"scales: a table of shape .* does not fit 3 steps"):
            ScaleTable(torch.ones(shape), SIGMAS)
    with pytest.raises(UndustError, match="scales: every one has to be finite"):
        ScaleTable(torch.tensor([1.0, math.nan, 1.0]), SIGMAS)
    table = ScaleTable(torch.tensor([[1.0, 2.0]] * 3), SIGMAS)
    guided = ClassifierFree(world.branch(1), world.branch(2), table)
    with pytest.raises(UndustError, match=r"a scale of shape \[2\] does not fit x \[3, 2, 4, 5\]"):
        guided(world.x, world.sigma)
