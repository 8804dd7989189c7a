from __future__ import annotations

import pytest
import torch

from undust.diffusion.guidance import ClassifierFree, Regional
from undust.errors import UndustError

LEFT = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]).expand(4, 5)


def test_one_region_is_its_prompt_to_the_bit(bent):
    prompt = bent.branch(1)
    masks = torch.stack([torch.full((4, 5), 0.3), torch.zeros(4, 5)])
    answer = Regional([prompt, bent.branch(2)], masks)(bent.x, bent.sigma)
    assert torch.equal(answer, prompt(bent.x, bent.sigma))
    assert bent.calls == [3, 3]


def test_every_place_has_the_mean_of_its_regions(world):
    """Of Gaussians: the mean Σ mask·m / Σ mask, all regions in one call."""
    a, b, n = (world.mean(seed) for seed in (1, 2, 3))
    masks = torch.stack([2 * LEFT, 1 - LEFT])
    regions = Regional([world.asked(a), world.asked(b)], masks)
    share = (2 * LEFT / (1 + LEFT)).double()
    mean = share * a + (1 - share) * b
    torch.testing.assert_close(
        regions(world.x, world.sigma), world.exact(mean), rtol=1e-6, atol=1e-6
    )
    guided = ClassifierFree(regions, world.asked(n), 2.0)
    world.calls.clear()
    answer = guided(world.x, world.sigma)
    assert world.calls == [9]
    torch.testing.assert_close(answer, world.exact(2 * mean - n), rtol=1e-6, atol=1e-6)


def test_a_video_has_the_same_regions_in_every_frame(world):
    video = type(world)(world.x[:, None].repeat(1, 3, 1, 1, 1), world.sigma)
    masks = torch.stack([LEFT.ceil(), 1 - LEFT.ceil()])
    answer = Regional([video.branch(1), video.branch(2)], masks)(video.x, video.sigma)
    first, second = video.exact(video.mean(1)), video.exact(video.mean(2))
    assert torch.equal(answer[..., :3], first[..., :3])
    assert torch.equal(answer[..., 3:], second[..., 3:])


def test_masks_that_make_no_sense(bent):
    parts = [bent.branch(1), bent.branch(2)]
    for masks, said in [
        (LEFT[None], "do not fit 2 regions"),
        (torch.ones(2, 4), "do not fit 2 regions"),
        (torch.stack([LEFT, -LEFT]), "not below 0"),
        (torch.stack([LEFT, LEFT * float("nan")]), "finite"),
        (torch.stack([LEFT, LEFT]), "at some place every mask is 0"),
    ]:
        with pytest.raises(UndustError, match=f"regions: .*{said}"):
            Regional(parts, masks)
    with pytest.raises(UndustError, match=r"masks of \[4, 6\] do not fit \[4, 5\]"):
        Regional(parts, torch.ones(2, 4, 6))(bent.x, bent.sigma)
