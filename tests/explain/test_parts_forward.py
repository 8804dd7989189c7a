"""Forward diffusion explained: closed forms of its measures, on processes of every kind."""

from __future__ import annotations

import math

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.diffusion.process import DISCRETE, EDM, VE, Flow, zero_terminal_snr
from undust.explain.measures import root_mean_square
from undust.explain.parts import PARTS, forward
from undust.explain.setup import Setup


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


def test_it_runs():  # test_texts.py: what fits one language fits all
    result = PARTS["forward"](setup(tiny(), "en"))
    names = ["other_noise", "at_once", "blur", "no_network"]
    assert [effect.name for effect in result.effects] == names
    assert len(result.figures) == 4
    assert len(result.numbers["sigma"]) == len(result.numbers["time"]) == 33


@pytest.mark.parametrize("process", [DISCRETE["linear"](), VE(), EDM(), Flow()], ids=type)
def test_levels_are_even_in_angle(process):
    levels = forward.spaced(process, 0.7, 8)
    angles = torch.tensor([math.atan(level / 0.7) for level in levels])
    assert torch.allclose(angles.diff(), angles.diff().mean().expand(8), rtol=1e-3)
    assert levels[0] == process.sigma_min
    assert levels[-1] == process.sigma_max


@pytest.mark.parametrize("process", [None, VE(), EDM(), Flow()], ids=str)
def test_recorded_noise_gives_the_latent_back_and_other_noise_does_not(shown, process, monkeypatch):
    """The wrong noise misses by σ times the difference of two unit noises."""
    monkeypatch.setattr(shown.model, "process", process or shown.model.process)
    unit = shown.latents.std().item()
    rounding = torch.finfo(torch.float32).eps
    for level in (0.1, 1.0, 10.0):
        assert (
            forward.recovered(shown, level, forward.OWN).max() < 2 * rounding * (level + 2) / unit
        )
        a, b = (shown.noise(shown.latents, seed) for seed in (forward.OWN, forward.WRONG))
        expected = level * root_mean_square(a - b) / unit
        found = forward.recovered(shown, level, forward.WRONG)
        assert torch.allclose(found, expected, rtol=1e-4)


def test_the_linear_guess_has_wieners_error(monkeypatch):
    """σ·s/√(σ² + s²) for latents of deviation s."""
    model = tiny()
    many = setup(model)
    latents = 2 * torch.randn(40, 4, 16, 16) + 5
    monkeypatch.setitem(many.__dict__, "latents", latents)
    for level in (0.3, 2.0, 50.0):
        expected = 2 * level / math.hypot(2, level)
        found = forward.linear_errors(many, level)
        assert found.mean().item() == pytest.approx(expected, rel=0.03)


def test_a_step_to_the_end_has_the_error_of_the_estimate():
    own = torch.tensor([[0.0, 0.2, 0.5, 0.6, 0.9]])
    levels = [1e-9, 1.0, 2.0, 4.0, 8.0]
    whole = forward.hardest_step(own, levels, 1.0, 1)
    assert whole.item() == pytest.approx(0.9)
    halves = forward.hardest_step(own, levels, 1.0, 2)
    assert halves.item() == pytest.approx(max(0.5, 0.9 * (1 - 2 / 8) / 5**0.5))


@torch.inference_mode()
def test_a_process_that_ends_in_noise(monkeypatch):
    """Its last level is nearly infinite, and every figure and number is finite."""
    model = tiny()
    whole = setup(model)
    zero = zero_terminal_snr(model.process)
    monkeypatch.setattr(model, "process", zero)
    chart = forward.signal(whole)
    assert all(math.isfinite(y) and y > 0 for line in chart.lines for y in line.y)
    assert 1 < len(chart.lines[0].x) < forward.TIMES
