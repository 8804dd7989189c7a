from __future__ import annotations

import math

import pytest
import torch

from undust.diffusion.guidance import PromptSchedule
from undust.errors import UndustError


@pytest.mark.parametrize(
    ("level", "turn"), [(9.0, 0), (5.01, 0), (5.0, 1), (0.31, 1), (0.3, 2), (0.01, 2)]
)
def test_each_prompt_has_its_levels(bent, level: float, turn: int):
    parts = [bent.branch(seed) for seed in (1, 2, 3)]
    schedule = PromptSchedule(parts[0], [(5.0, parts[1]), (0.3, parts[2])])
    sigma = torch.full((3,), level)
    answer = schedule(bent.x, sigma)
    assert bent.calls == [3]
    assert torch.equal(answer, parts[turn](bent.x, sigma))


def test_the_last_level_is_never_reached(bent):
    first = bent.branch(1)
    for later in ([], [(0.0, bent.branch(2))]):
        answer = PromptSchedule(first, later)(bent.x, torch.full((3,), 1e-9))
        assert torch.equal(answer, first(bent.x, torch.full((3,), 1e-9)))


def test_levels_that_make_no_sense(bent):
    part = bent.branch(1)
    for levels in ([1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [math.nan]):
        with pytest.raises(UndustError, match="prompt schedule: the levels have to fall"):
            PromptSchedule(part, [(level, part) for level in levels])
