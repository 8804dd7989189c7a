"""The time embedding as a part: wrong time steps, and measures with known values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.explain.denoising_error import denoising_errors
from undust.explain.parts import PARTS
from undust.explain.parts import time_embedding as part
from undust.explain.setup import Setup
from undust.explain.texts import Language
from undust.pipeline import LatentDiffusion


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


@pytest.mark.parametrize(("model", "language"), [(emoji, "en"), (tiny, "ko")])
def test_it_runs(model: Callable[[], LatentDiffusion], language: Language):
    found = PARTS["time-embedding"](setup(model(), language))
    assert len(found.figures) == 3
    assert {each.name for each in found.effects} == {
        *("error_frozen_middle", "detail_told_early", "layout_told_late", "stages_learnt")
    }


def test_the_right_time_told_is_no_error(shown: Setup):
    unit = shown.latents.std().item()
    right = shown.model.process.timestep(torch.tensor([2.0 * unit], dtype=torch.float64)).item()
    expected = denoising_errors(shown, [2.0])
    assert torch.equal(denoising_errors(shown, [2.0], part.always(right)), expected)
    first, last = part.step_range(shown)
    assert (first, last) == (0.0, 999.0)
    assert torch.equal(denoising_errors(shown, [2.0], part.later(0.0, first, last)), expected)
    assert not torch.allclose(
        denoising_errors(shown, [2.0], part.later(150.0, first, last)), expected
    )


def test_later_stays_within_the_range(shown: Setup):
    beyond = denoising_errors(shown, [1.0], part.later(5000.0, 0.0, 999.0))
    assert torch.equal(beyond, denoising_errors(shown, [1.0], part.always(999.0)))


def test_detail_and_layout():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1  # single pixels
    halves = torch.where(torch.arange(64) < 32, -1.0, 1.0).expand(64, 64)
    pictures = torch.stack([each.expand(3, 64, 64) for each in (board, halves, 0.5 + 0 * board)])
    assert part.detail(pictures) == pytest.approx([1, 0, 0], abs=1e-6)
    assert part.layout(pictures) == pytest.approx([0, 1, 0], abs=1e-6)


def test_similarity_of_rows():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]) + 7
    expected = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
    assert torch.allclose(part.similarity(rows), expected, atol=1e-6)
    found = part.nearness(torch.tensor([[1.0, 0], [1, 0], [-2, 0]]))
    assert found == pytest.approx([2])  # 1 with the one near, −1 with the one far


def test_compared_times_are_in_the_range():
    own, near, far = part.compared_times().chunk(3)
    assert torch.allclose((near - own).abs(), torch.tensor(part.NEAR).double())
    assert torch.allclose((far - own).abs(), torch.tensor(part.FAR).double())
    assert min(own.min(), near.min(), far.min()) >= 0
    assert max(own.max(), near.max(), far.max()) <= 1
