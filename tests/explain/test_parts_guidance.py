"""Guidance as a part: agreement by the model as a classifier, diversity, and colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.errors import UndustError
from undust.explain.figures import Frames
from undust.explain.parts import PARTS, guidance
from undust.explain.setup import Setup
from undust.explain.texts import Language
from undust.pipeline import LatentDiffusion


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "SCALES", (0.0, 1.0, 4.0, 20.0))
    monkeypatch.setattr(guidance, "LEVELS", (1.0,))


@pytest.mark.usefixtures("fewer")
@pytest.mark.parametrize(("model", "language"), [(emoji, "en"), (tiny, "ko")])
@pytest.mark.filterwarnings("error:guidance")
def test_it_runs(model: Callable[[], LatentDiffusion], language: Language):
    found = PARTS["guidance"](setup(model(), language))
    scales, *_ = found.figures
    assert isinstance(scales, Frames)
    assert len(scales.images) == len(guidance.SCALES)
    assert [each.name for each in found.effects] == ["agreement", "saturation", "contrast"]


@pytest.mark.usefixtures("fewer")
def test_three_seeds_have_a_diversity():
    three = replace(setup(tiny()), prompts=["bird", "person", "person"], seeds=[0, 1, 2], steps=1)
    assert "diversity" in {each.name for each in guidance.show(three).effects}


def test_a_model_without_text_is_refused(shown: Setup):
    model = emoji().with_engine("torch")
    model.texts = ()
    with pytest.raises(UndustError, match="guidance: it needs a model with text"):
        guidance.show(replace(shown, model=model))


def test_at_0_the_prompt_does_not_count(shown: Setup):
    first, other = (
        guidance.sampled(shown, prompts, 0.0).latents for prompts in (shown.prompts, ["bird"] * 2)
    )
    torch.testing.assert_close(first, other, atol=1e-4, rtol=1e-4)


def test_one_prompt_is_compared_with_none(shown: Setup):
    one = replace(shown, prompts=["bird", "bird"])
    assert guidance.candidates(one) == ["bird", None]
    assert guidance.candidates(shown) == [*shown.prompts]
    assert guidance.owners(one) == [0, 0]


def test_errors_are_those_of_each_estimate(shown: Setup):
    latents, unit = shown.latents[:2], shown.latents.std().item()
    found = guidance.errors(shown, latents)
    assert found.shape == (3, 2, 2)
    x = latents[1:] + 2 * unit * shown.noise(latents[:1], 2)
    estimate = shown.estimate(x, 2 * unit, prompts=[shown.prompts[0]])
    expected = (estimate - latents[1:]).square().mean()
    torch.testing.assert_close(found[2, 1, 0], expected, atol=1e-5, rtol=1e-4)


def test_the_margin_is_a_share_of_the_others_mean():
    found = torch.tensor([[[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]])
    assert guidance.margin(found, [0, 1]) == [pytest.approx(1 - 1 / 4), 0]
    assert guidance.right(found, [0, 2]) == 0.5


def test_pictures_that_are_all_one_have_no_spread():
    assert guidance.spread(torch.ones(3, 3, 4, 4)) == [0, 0, 0]
    apart = torch.tensor([0.0, 1.0, 1.0]).reshape(3, 1, 1, 1).expand(-1, 3, 4, 4)
    assert guidance.spread(apart) == [1, 0.5, 0.5]


def test_the_jackknife_leaves_one_picture_out():
    """The pseudo-values n·θ − (n − 1)·θ₋ᵢ of the mean distance θ of all pairs."""
    pictures = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def mean(chosen: torch.Tensor) -> float:
        return sum(guidance.spread(chosen)) / len(chosen)

    rest = [torch.cat([pictures[:k], pictures[k + 1 :]]) for k in range(5)]
    expected = [5 * mean(pictures) - 4 * mean(each) for each in rest]
    assert guidance.jackknife(guidance.spread(pictures)) == pytest.approx(expected, abs=1e-5)


def test_saturation_and_contrast():
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(-1, -1, 2, 2)
    assert guidance.saturation(torch.cat([red, 9 * red, 0 * red])) == [1, 1, 0]
    halves = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).expand(1, 3, 2, 2)
    assert guidance.contrast(halves) == [pytest.approx((1 / 3) ** 0.5)]
