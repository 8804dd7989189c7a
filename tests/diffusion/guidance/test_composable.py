from __future__ import annotations

import math

import pytest
import torch

from undust.diffusion.guidance import ClassifierFree, Composable
from undust.errors import UndustError


def test_one_prompt_is_that_prompt_to_the_bit(bent):
    prompt, empty = bent.branch(1), bent.branch(2)
    for prompts in ([(prompt, 1.0)], [(prompt, 1.0), (bent.branch(3), 0.0)]):
        bent.calls.clear()
        answer = Composable(empty, prompts)(bent.x, bent.sigma)
        assert torch.equal(answer, prompt(bent.x, bent.sigma))
        assert bent.calls == [3, 3]


def test_composed_gaussians_are_the_gaussian_of_the_composed_mean(world):
    """Liu et al. 2022: e + Σ w·(m − e), all in one call, and guided by a scale on top."""
    a, b, e = (world.mean(seed) for seed in (1, 2, 3))
    empty = world.asked(e)
    both = Composable(empty, [(world.asked(a), 1.0), (world.asked(b), -0.7)])
    mean = e + (a - e) - 0.7 * (b - e)
    torch.testing.assert_close(both(world.x, world.sigma), world.exact(mean))
    guided = ClassifierFree(both, empty, 3.0)
    world.calls.clear()
    answer = guided(world.x, world.sigma)
    assert world.calls == [9]
    torch.testing.assert_close(answer, world.exact(e + 3 * (mean - e)))


def test_no_prompt_that_counts_is_no_prompt(bent):
    empty = bent.branch(2)
    answer = Composable(empty, [(bent.branch(1), 0.0)])(bent.x, bent.sigma)
    assert torch.equal(answer, empty(bent.x, bent.sigma))


def test_prompts_that_make_no_sense(bent):
    for prompts in ([], [(bent.branch(1), math.nan)], [(bent.branch(1), math.inf)]):
        with pytest.raises(UndustError, match="composable: one finite weight or more"):
            Composable(bent.branch(2), prompts)
