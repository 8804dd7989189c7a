"""The latent space explained: closed forms of its measures, and its costs by other counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from part_setups import emoji, setup, tiny
from undust.explain.figures import TextTable
from undust.explain.parts import PARTS, latent_space
from undust.explain.setup import Setup
from undust.explain.texts import read
from undust.pictures import to_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


def test_it_runs():  # test_texts.py: what fits one language fits all
    result = PARTS["latent-space"](setup(tiny(), "ko"))
    names = ["fade", "layout_kept", "layout_share", "seconds"]
    assert [effect.name for effect in result.effects] == names
    edits, chart, costs, trained = result.figures
    assert len(edits.images) == 7
    assert len(chart.lines) == 4
    assert isinstance(costs, TextTable)
    assert [row[1:] for row in costs.rows[:2]] == [
        ["1,024", "12,288", "12.0"],
        ["256", "4,096", "16.0"],
    ]
    assert [row[0] for row in trained.rows] == [
        read("ko", "latent-space")[name] for name in ("pixel_unet", "latent_unet", "pixel_jit")
    ]


def test_a_large_model_is_not_timed(monkeypatch):
    monkeypatch.setattr(latent_space, "LARGE", 1000)
    result = latent_space.show(setup(tiny()))
    assert "seconds" not in [effect.name for effect in result.effects]
    assert len(result.figures[2].rows) == 4


def test_white_noise_has_the_share_of_cells_in_pixels():
    share = latent_space.layout_share(torch.randn(200, 3, 64, 64))
    assert share.mean().item() == pytest.approx(100 * 16 / 64**2, rel=0.05)
    flat = torch.ones(2, 3, 64, 64)
    assert torch.allclose(latent_space.layout_share(flat), torch.tensor(100.0))


@torch.inference_mode()
def test_draws_on_pixels_differ_by_noise_alone(shown: Setup):
    (first, _), (second, _) = latent_space.two_draws(shown)
    spread = shown.pictures.std()
    expected = spread * (shown.noise(first, 0) - shown.noise(first, 1)) / 2**0.5
    assert torch.allclose(first - second, expected, atol=1e-5)


@torch.inference_mode()
def test_no_noise_is_wholly_like(shown: Setup):
    assert torch.allclose(latent_space.likeness(shown, 0), torch.ones(2, 2, 3), atol=1e-5)


@torch.inference_mode()
def test_edits_are_those_of_image_to_image(shown: Setup):
    edited, faded = latent_space.edits(shown)
    assert len(edited) == len(faded) == 7
    assert torch.equal(edited[0], faded[0])
    assert torch.equal(edited[-1], faded[-1])
    assert torch.allclose(faded[3], (edited[0] + edited[-1]) / 2, atol=1e-6)
    own = to_images(shown.pictures)[1]
    (picture,) = shown.model.generate(
        shown.prompts[0], seed=0, steps=2, guidance=4.0, init=own, strength=0.5
    )
    assert to_images(edited[3])[0].tobytes() == picture.image.tobytes()


@torch.inference_mode()
def test_operations_of_convolutions_are_counted_by_hand():
    """A U-Net's convolutions are most of what is counted, and all of it grows with the places."""
    model = setup(tiny())
    small, large = (latent_space.operations(model, pixels=each) for each in (False, True))
    by_hand = 0

    def count(module: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal by_hand
        by_hand += 2 * output.numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(count)
        for module in model.model.unet.modules()
        if isinstance(module, nn.Conv2d)
    ]
    x = torch.randn(latent_space.input_shape(model, pixels=False))
    model.model.denoise(x, torch.ones(1, dtype=torch.float64), model.model.condition([None]))
    for hook in hooks:
        hook.remove()
    assert 0.5 * small < by_hand < small
    assert large > 16 * small * 0.9


def test_stored_results_are_those_of_the_document():
    stored = json.loads(latent_space.RESULTS.read_text("utf-8"))
    page = (ROOT / stored["document"]).read_text("utf-8")
    assert stored["command"] in page
    for row in stored["rows"]:
        kernel = " ± ".join(map(str, row["kernel_distance"]))
        written = (
            f"{row['steps']:,} | {row['training_pictures_per_second']} | "
            f"{row['sampling_pictures_per_second']} | {row['training_memory_gib']} GiB | "
            f"{row['frechet_distance']} | {kernel} | "
            f"{row['precision_percent']} % | {row['recall_percent']} %"
        )
        assert written in page
