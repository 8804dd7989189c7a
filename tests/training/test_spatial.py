"""Inpainting and super-resolution: trained, saved, loaded, sampled, and obeyed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import undust
from undust.errors import UndustError
from undust.generation.start import prepared
from undust.pictures import from_image
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.run import train
from undust.training.spatial import random_masks

Recipe = Callable[..., DiffusionConfig]
LONGER = ("run.steps=250", "diffusion.prediction=v_prediction")


def test_a_masked_picture_is_completed(recipe: Recipe, pictures: Path, tmp_path: Path) -> None:
    """Half of a square is hidden: what is seen of it says its colour."""
    assert train(recipe("[inpainting]\nwhole = 0", *LONGER, "run.batch=6"), tmp_path / "run")
    model = undust.load(tmp_path / "run/model")
    assert model.unet.config.in_channels == 3 + 1 + 3
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 8, 16, 16))
    for name in ("green/0.png", "red/1.png", "blue/2.png"):
        image = Image.open(pictures / name)
        made = model.generate([], init=image, mask=mask, seed=1, count=2, steps=8)
        pixels = torch.stack([from_image(each.image, (16, 16)).float() for each in made])
        wanted, found = from_image(image, (16, 16))[:, 8:12].float(), pixels.mean(0)[:, 8:12]
        square = wanted.amax(0) > 0
        assert found[:, square].mean(1).argmax() == wanted[:, square].mean(1).argmax()
        assert found[:, square].mean() > 1.5 * found[:, ~square].mean()


def test_a_small_picture_is_enlarged(
    recipe: Recipe, pictures: Path, exact_first_stage: Path, tmp_path: Path
) -> None:
    longer = (*LONGER, "run.steps=80", "run.batch=8")
    more = "[low_resolution]\nmax_noise_level = 100"
    config = recipe(more, *longer, first=str(exact_first_stage))
    assert train(config, tmp_path / "run")
    model = undust.load(tmp_path / "run/model")
    assert (model.max_noise_level, model.unet.config.num_class_embeds) == (100, 101)
    images = [Image.open(pictures / name) for name in ("green/0.png", "red/1.png", "blue/2.png")]
    small = [image.resize((8, 8), Image.Resampling.LANCZOS) for image in images]
    own = torch.stack([from_image(image, (16, 16)) / 127.5 - 1 for image in images])
    own = model.encode(own).flatten(1)
    made = torch.stack(
        [
            torch.stack(
                [
                    picture.latent
                    for picture in model.generate(
                        [], init=each, noise_level=5, seed=1, count=4, steps=10
                    )
                ]
            ).mean(0)
            for each in small
        ]
    ).flatten(1)
    # The first stage has random weights: each result is nearest to the latents of its own picture.
    assert torch.cdist(made, own).argmin(1).tolist() == [0, 1, 2]
    with pytest.raises(UndustError, match="trained with at most 100, not 101"):
        model.generate([], init=small[0], noise_level=101)


def test_training_and_sampling_give_the_network_the_same(recipe: Recipe, tmp_path: Path) -> None:
    """The channels of a mask, of a picture and its first stage, in both ways."""
    task = DiffusionTask(recipe("[inpainting]\nwhole = 0", first=None).complete(), tmp_path)
    batch = task.order.batch(0, 1)
    trained = task.conditions[0].channels(batch)
    assert trained is not None
    hidden = random_masks(batch.uniform(11, 25)[:, 1:], (16, 16))  # the stream of masks
    mask = Image.fromarray((hidden[0, 0] * 255).byte().numpy())
    image = task.data.samples[batch.sample[0]].image()
    [given] = task.model.recipes([], init=image, mask=mask, seed=1)
    sampled = prepared(task.model, [given]).extra_channels
    assert sampled is not None
    torch.testing.assert_close(trained, sampled)
    command = task.next_steps(Path("made"), Path("pictures"))
    assert "undust generate --model made --init picture.png --mask mask.png;" in command


def test_masks_hide_a_part() -> None:
    chance = torch.Generator().manual_seed(0)
    masks = random_masks(torch.rand(200, 24, generator=chance), (32, 32))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    hidden = masks.mean((1, 2, 3))
    assert hidden.min() > 0
    assert 0.15 < hidden.mean() < 0.6


@pytest.mark.parametrize(
    ("more", "first", "error"),
    [
        ("[low_resolution]", "pixels", '"pixels" has none'),
        ("[low_resolution]\n[inpainting]", None, "low_resolution and inpainting: one of them"),
        ("[low_resolution]\n[labels]", None, "low_resolution and labels: one of them"),
    ],
)
def test_what_cannot_be(
    more: str, first: str | None, error: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UndustError, match=error):
        train(recipe(more, first=first), tmp_path / "run")
