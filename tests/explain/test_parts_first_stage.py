"""The first stage explained: its measures on random numbers and in both languages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from part_setups import emoji, setup, tiny
from undust.errors import UndustError
from undust.explain.measures import edges, root_mean_square
from undust.explain.parts import PARTS, first_stage
from undust.explain.setup import Setup
from undust.latent.first_stage import FirstStage, Posterior
from undust.networks.identity import IdentityFirstStage


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


def test_it_runs():  # test_texts.py: what fits one language fits all
    result = PARTS["first-stage"](setup(tiny(), "ko"))
    assert [effect.name for effect in result.effects] == [
        "shrunk",
        "even_noise",
        "detail_varies",
        "crossfade",
    ]
    assert [len(figure.images) for figure in result.figures] == [4, 10, 7, 11]
    assert result.numbers["numbers_of_a_picture"] == 3 * 64 * 64
    assert result.numbers["numbers_of_a_latent"] == 4 * 16 * 16


@torch.inference_mode()
def test_a_first_stage_without_ranges(shown: Setup, monkeypatch):
    encode = FirstStage.encode

    def points(self, pictures):
        found = encode(self, pictures)
        return Posterior(found.mean, torch.zeros_like(found.deviation))

    monkeypatch.setattr(FirstStage, "encode", points)
    result = first_stage.show(shown)
    assert [effect.name for effect in result.effects] == ["shrunk", "crossfade"]
    assert len(result.figures) == 3


def test_pixels_are_refused(shown: Setup, monkeypatch):
    monkeypatch.setattr(shown.model, "first_stage", FirstStage(IdentityFirstStage()))
    with pytest.raises(UndustError, match="works on pixels"):
        first_stage.show(shown)


def test_even_noise_has_the_size_of_the_range():
    posterior = Posterior(torch.randn(3, 4, 5, 5), torch.rand(3, 4, 5, 5))
    noise = torch.randn(3, 4, 5, 5)
    own, even = (
        first_stage.moved(posterior, 2, noise, even=each) - posterior.mean for each in (False, True)
    )
    assert torch.allclose(own, 2 * posterior.deviation * noise, atol=1e-6)
    assert torch.allclose(root_mean_square(own), root_mean_square(even))
    assert torch.allclose(F.cosine_similarity(even.flatten(1), noise.flatten(1)), torch.ones(3))


@pytest.mark.parametrize("level", [0.0, 0.5, 3.0])
def test_noise_keeps_mean_and_variance(level: float):
    x = 3 + 2 * torch.randn(50, 4, 20, 20)
    found = first_stage.noised(x, level, torch.randn(x.shape))
    assert found.mean().item() == pytest.approx(3, abs=0.05)
    assert found.std().item() == pytest.approx(2, abs=0.05)
    kept = torch.corrcoef(torch.stack([x.flatten(), found.flatten()]))[0, 1].item()
    assert kept == pytest.approx((1 + level**2) ** -0.5, abs=0.02)


@torch.inference_mode()
def test_a_fade_never_has_more_edges_than_its_ends(shown: Setup):
    faded, _ = first_stage.halfway(shown, shown.latents)
    ends = edges(shown.model.decode(shown.latents))
    assert bool((edges(faded) <= (ends + ends.roll(-1)) / 2 + 1e-6).all())


def test_one_colour_survives_the_smaller_picture(shown: Setup):
    flat = replace(shown, pictures=torch.full_like(shown.pictures, 0.3))
    assert torch.allclose(first_stage.shrunk(flat), flat.pictures, atol=1e-5)
    assert first_stage.shrunk(shown).shape == shown.pictures.shape
