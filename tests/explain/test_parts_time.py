"""Time as a part: noise put back, prompts changed on the way, and when estimates settle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.explain.figures import Frames
from undust.explain.parts import PARTS, time
from undust.explain.setup import Setup
from undust.explain.texts import Language
from undust.pipeline import LatentDiffusion

CONSTANT = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


@pytest.mark.parametrize(("model", "language"), [(emoji, "en"), (tiny, "ko")])
def test_it_runs(model: Callable[[], LatentDiffusion], language: Language):
    found = PARTS["time"](setup(model(), language))
    again, _, swap, _ = found.figures
    assert isinstance(again, Frames)
    assert isinstance(swap, Frames)
    assert len(again.images) == len(swap.images) == 2
    assert [(each.name, len(each.values)) for each in found.effects] == [
        ("layout_late", 3),
        ("detail_share", 3),
        ("layout_late_prompted", 2),
        ("texture_settles", 2),
        ("prompt_late", 2),
    ]


def test_one_prompt_for_all_cannot_be_swapped():
    found = time.show(replace(setup(tiny()), prompts=["red heart"] * 2))
    assert "prompt_late" not in {each.name for each in found.effects}
    assert len(found.figures) == 3


def test_the_way_of_the_baseline_is_finished_as_the_baseline(shown: Setup):
    with torch.inference_mode():
        again = time.swapped(shown, shown.prompts, 1)
    torch.testing.assert_close(again, shown.baseline.latents, atol=1e-4, rtol=1e-4)


def test_a_prompt_changed_at_the_start_is_a_generation_by_the_other(shown: Setup):
    other = shown.prompts[::-1]
    expected = shown.sample(prompts=other).latents
    torch.testing.assert_close(time.swapped(shown, other, 0), expected, atol=1e-4, rtol=1e-4)


def test_new_noise_has_the_level_of_the_step(shown: Setup):
    added = time.renoised(shown, shown.latents, 1) - shown.latents
    expected = shown.levels()[1].float() * shown.noise(shown.latents, 1)
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)


def test_the_change_of_one_cell_is_layout_and_of_a_checkerboard_texture():
    cell = CONSTANT.clone()
    cell[..., :8, :8] = 1
    torch.testing.assert_close(
        time.energies(cell, CONSTANT), torch.tensor([[1 / 16, 0, 0]]), atol=1e-7, rtol=0
    )
    board = torch.ones(32, 32)
    board[::2, 1::2] = board[1::2, ::2] = -1
    torch.testing.assert_close(
        time.energies(board.expand(1, 3, -1, -1), CONSTANT), torch.tensor([[0.0, 0, 1]])
    )


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [([0.8, 1, 1], 0.5), ([0.95, 0.5, 1], 1.8), ([0.9, 0.95, 1], 0), ([0, 0.5, 1.0], 1.8)],
)
def test_settling(cosines: list[float], expected: float):
    assert time.settling(torch.tensor([cosines]).T).tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [0]), (4, [0, 1, 2, 3]), (7, [0, 3, 6]), (50, [0, 24, 49])]
)
def test_positions(steps: int, expected: list[int]):
    assert time.positions(steps, 4 if steps == 4 else 3) == expected
