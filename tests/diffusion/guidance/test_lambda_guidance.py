"""Known views in a film: nothing with w = 0, all of them with w = 1, and the share in between."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from undust.diffusion import lambda_tables
from undust.diffusion.guidance import ClassifierFree, LambdaGuidance
from undust.diffusion.lambda_tables import LambdaTable
from undust.diffusion.noise import PictureNoise, normal
from undust.diffusion.process import EDM
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

SHAPE = (3, 2, 4, 5)  # frames, channels, height, width
LEVELS = torch.tensor([5.0, 1.7, 0.4], dtype=torch.float64)
VIEWS = normal(3, (0, 0, 0), SHAPE).double()
MASKS = (normal(4, (0, 0, 0), (3, 4, 5)) > -0.5).double()
SIGMA = torch.full((2,), 1.7).double()
FORMS: tuple[Literal["quantile", "blend"], ...] = ("quantile", "blend")
each_form = pytest.mark.parametrize("form", FORMS)


def film(seed: int = 0, batch: int = 2) -> Tensor:
    return normal(seed, (0, 0, 0), (batch, *SHAPE)).double() * 2


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """Something like a network, in which every frame sees all frames."""
    level = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (torch.tanh(x + 0.3 * x.mean(1, keepdim=True)) / (1 + 0.1 * level)).to(x)


def table(*weights: float) -> LambdaTable:
    """The same weights of the frames at every level."""
    return LambdaTable(torch.tensor(weights, dtype=torch.float64).expand(3, -1), LEVELS)


def bits(x: Tensor) -> list[str]:
    """Texts that distinguish −0 from 0."""
    return [number.hex() for number in x.flatten().tolist()]


def valid() -> Tensor:
    """[F, C, h, w], with all of frame 0."""
    found = MASKS[:, None].expand(SHAPE) == 1
    return torch.cat([torch.ones_like(found[:1]), found[1:]])


@each_form
def test_without_weight_it_is_not_there_to_the_bit(form: Any):
    zero = film().where(film() > 0, -0.0)  # a sum with +0 would make −0 into 0
    same = LambdaGuidance(lambda x, sigma: x, table(0, 0, 0), VIEWS, MASKS, form)
    assert bits(same(zero, SIGMA)) == bits(zero)
    some = LambdaGuidance(lambda x, sigma: x, table(0, 0.5, 0), VIEWS, MASKS, form)(zero, SIGMA)
    assert bits(some[:, [0, 2]]) == bits(zero[:, [0, 2]])
    assert not torch.equal(some[:, 1], zero[:, 1])


@each_form
def test_with_the_whole_weight_it_is_what_is_known(form: Any):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x, views = film().to(dtype), (VIEWS * 1e3).to(dtype)
        own = denoise(x, SIGMA)
        guided = LambdaGuidance(denoise, table(1, 1, 1), views, MASKS, form)
        answer = guided(x, SIGMA)
        assert answer.dtype == dtype
        assert torch.equal(answer, torch.where(valid(), views, own))


@each_form
def test_where_nothing_is_valid_only_the_input_frame_is_known(form: Any):
    nothing = LambdaGuidance(
        denoise, table(1, 0.7, 0.7), VIEWS.index_fill(0, torch.tensor([1, 2]), math.nan),
        torch.zeros(3, 4, 5), form,
    )  # fmt: skip
    own, answer = denoise(film(), SIGMA), nothing(film(), SIGMA)
    assert torch.equal(answer[:, 1:], own[:, 1:])
    assert torch.equal(answer[:, 0], VIEWS[0].expand(2, -1, -1, -1))


@each_form
def test_a_film_of_a_batch_is_that_film_alone(form: Any):
    views = torch.stack([VIEWS, normal(7, (0, 0, 0), SHAPE).double()])
    masks = torch.stack([MASKS, MASKS.flip(2)])[:, :, None]
    weights = table(1, 0.4, 0.15)
    own = lambda x, sigma: x.tanh()  # noqa: E731
    together = LambdaGuidance(own, weights, views, masks, form)(film(), SIGMA)
    shared = LambdaGuidance(own, weights, VIEWS, MASKS, form)(film(), SIGMA)
    for place in range(2):
        x, sigma = film()[place : place + 1], SIGMA[:1]
        alone = LambdaGuidance(own, weights, views[place], masks[place], form)(x, sigma)
        assert torch.equal(together[place], alone[0])
        alone = LambdaGuidance(own, weights, VIEWS, MASKS[:, None], form)(x, sigma)
        assert torch.equal(shared[place], alone[0])


def test_a_blend_is_the_mean_of_weight_lambda():
    """Seed 001's μ̃ = (x̂0 + λ·F)/(1 + λ), for w = λ/(1 + λ)."""
    weights = table(1, 0.3, 0.8)
    own = denoise(film(), SIGMA)
    answer = LambdaGuidance(denoise, weights, VIEWS, MASKS, "blend")(film(), SIGMA)
    for frame, strength in enumerate(weights.lambdas[0].tolist()):
        if frame:
            mean = (own[:, frame] + strength * VIEWS[frame]) / (1 + strength)
            expected = torch.where(valid()[frame], mean, own[:, frame])
            torch.testing.assert_close(answer[:, frame], expected)


@given(st.floats(0, 1), st.integers(0, 40))
def test_the_quantile_is_that_of_the_formula(weight: float, invalid: int):
    """A loop over one frame's numbers: the published index into all of them, sorted."""
    mask = torch.ones(20)
    mask[: invalid // 2] = 0
    masks = mask.reshape(4, 5).expand(3, 4, 5)
    own = denoise(film(batch=1), SIGMA[:1])
    guided = LambdaGuidance(denoise, table(1, weight, 1), VIEWS, masks)
    answer = guided(film(batch=1), SIGMA[:1])[0, 1]
    flat, known = own[0, 1].flatten().tolist(), VIEWS[1].flatten().tolist()
    valid = [*mask.tolist(), *mask.tolist()]
    off = [abs(a - f) * m for a, f, m in zip(flat, known, valid, strict=True)]
    left_out = valid.count(0)
    place = int(weight * (len(off) - left_out)) + left_out - 1
    cutoff = sorted(off)[place] if place >= 0 else -1.0
    top = [m == 1 and o <= cutoff for o, m in zip(off, valid, strict=True)]
    expected = [f if t else a for a, f, t in zip(flat, known, top, strict=True)]
    assert answer.flatten().tolist() == expected
    assert sum(top) == int(weight * (len(off) - left_out))


def test_the_weight_has_a_lower_bound():
    clamped = LambdaGuidance(denoise, table(1, 0.1, 0.5), VIEWS, MASKS, weight_clamp=0.2)
    lifted = LambdaGuidance(denoise, table(1, 0.2, 0.5), VIEWS, MASKS)
    assert torch.equal(clamped(film(), SIGMA), lifted(film(), SIGMA))


def test_each_step_has_its_own_row():
    weights = torch.tensor([[1, 0.9, 0.8], [1, 0.5, 0.4], [0, 0, 0]]).double()
    steps = LambdaTable(weights, LEVELS)
    for row, level in enumerate(LEVELS.tolist()):
        sigma = torch.full((2,), level)  # in float32, as samplers do
        one = LambdaGuidance(denoise, steps, VIEWS, MASKS)(film(), sigma)
        other = LambdaGuidance(denoise, table(*weights[row]), VIEWS, MASKS)(film(), sigma)
        assert torch.equal(one, other)
    with pytest.raises(UndustError, match=r"σ = 1\.5 is not one of its 3 noise levels, .* 1\.7"):
        LambdaGuidance(denoise, steps, VIEWS, MASKS)(film(), torch.full((2,), 1.5))


@each_form
def test_around_classifier_free_guidance(form: Any, world: Any):
    """The guided estimate is what is replaced, in the two calls that it takes."""
    world = type(world)(film(), SIGMA, bent=True)
    cfg = ClassifierFree(world.branch(1), world.branch(2), 5.0)
    own = cfg(world.x, world.sigma)
    world.calls.clear()
    answer = LambdaGuidance(cfg, table(1, 0.5, 0.2), VIEWS, MASKS, form)(world.x, world.sigma)
    assert world.calls == [2, 2]
    given = LambdaGuidance(lambda *_: own, table(1, 0.5, 0.2), VIEWS, MASKS, form)
    assert torch.equal(answer, given(world.x, world.sigma))


@each_form
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "euler-ancestral"])
def test_in_a_run_the_known_frame_comes_out_exactly(name: str, form: Any):
    sigmas = SCHEDULES["karras"](EDM(0.002, 700.0), 25)
    searched = lambda_tables.search(sigmas, 3)
    guided = LambdaGuidance(denoise, searched, VIEWS.float(), MASKS, form)
    start = (sigmas[0] * normal(8, (0, 0, 0), (1, *SHAPE))).float()
    *_, last = SAMPLERS[name](guided, start, sigmas, PictureNoise([3], SHAPE))
    assert torch.equal(last.x[0, 0], VIEWS[0].float())
    assert bool(last.x.isfinite().all())


def test_what_does_not_fit():
    for views, masks, said in (
        (VIEWS[0], MASKS, r"known latents of shape \[2, 4, 5\] are not \[frames, C, h, w\]"),
        (VIEWS[:2], MASKS[:2], "known latents of 2 frames do not fit a table of 3"),
        (VIEWS, MASKS[:2], r"masks of shape \[2, 4, 5\] do not fit"),
        (VIEWS, MASKS.mT, r"masks of shape \[3, 5, 4\] do not fit"),
        (VIEWS, MASKS[:, None].expand(SHAPE), r"masks .* do not fit .*they are \[3, 1, 4, 5\]"),
        (VIEWS[None], MASKS.expand(2, 3, 4, 5)[:, :, None], "do not fit known latents"),
        (VIEWS, MASKS * 0.5, "a mask is 1 where a latent is valid, and else 0"),
        (VIEWS, MASKS * math.nan, "a mask is 1 where a latent is valid, and else 0"),
        (VIEWS / 0, MASKS, "a latent is not finite where its mask is 1"),
    ):
        with pytest.raises(UndustError, match=said):
            LambdaGuidance(denoise, table(1, 1, 1), views, masks)
    for options, said in (
        ({"form": "mix"}, "'mix' is none of quantile, blend"),
        ({"weight_clamp": 1.5}, r"weight_clamp 1\.5 is not in 0 … 1"),
        ({"weight_clamp": math.nan}, "weight_clamp nan is not in 0 … 1"),
    ):
        with pytest.raises(UndustError, match=said):
            LambdaGuidance(denoise, table(1, 1, 1), VIEWS, MASKS, **options)
    guided = LambdaGuidance(denoise, table(1, 1, 1), VIEWS, MASKS)
    for x in (film()[:, :2], film()[..., :4], film()[0]):
        with pytest.raises(UndustError, match=r"known latents of .* do not fit x"):
            guided(x, torch.full((len(x),), 1.7))
    for_two = LambdaGuidance(denoise, table(1, 1, 1), VIEWS.expand(2, *SHAPE), MASKS)
    with pytest.raises(UndustError, match=r"do not fit x \[3, 3, 2, 4, 5\]"):
        for_two(film(batch=3), torch.full((3,), 1.7))
    with pytest.raises(UndustError, match="needs one σ for the whole batch"):
        guided(film(), torch.tensor([1.7, 0.4]))


def test_the_examples_of_the_documentation():
    page = Path(__file__).parents[3] / "docs/video/lambda-tables.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    exec("\n".join(code), {})
