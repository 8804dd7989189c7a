"""Training a first stage: the loss, what is published, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from undust.errors import UndustError
from undust.formats.components import load_first_stage
from undust.training.data import RandomStream
from undust.training.first_stage import FirstStageConfig, FirstStageTask
from undust.training.losses import gradient_difference
from undust.training.run import train

Read = Callable[..., FirstStageConfig]


@torch.no_grad()
def test_what_is_published_has_unit_latents_and_paints_the_same(
    first_stage_recipe: Read, tmp_path: Path
):
    """Unit variance of sampled latents: of the means, and of the posteriors' own."""
    task = FirstStageTask(first_stage_recipe(), Path("out"))
    task.publish(tmp_path / "model")
    published = load_first_stage(tmp_path / "model")
    assert published.config.scaling_factor == 1
    pictures = task.images([*map(task.data.views.central, range(10))])
    ours, theirs = task.autoencoder.encode(pictures), published.encode(pictures)
    torch.testing.assert_close(
        published.decode(theirs.mode()), task.autoencoder.decode(ours.mode()), atol=1e-4, rtol=0
    )
    mean, variance = theirs.mean, theirs.logvar.exp()
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    spread = mean.var((0, 2, 3)) + variance.mean((0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_the_loss_is_the_sum_that_the_recipe_says(pixel: str, first_stage_recipe: Read):
    recipe = first_stage_recipe(f"loss.pixel={pixel}", "loss.edges=0.7", "loss.kl=0.01")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"crop": None})})
    task = FirstStageTask(recipe, Path("out"))
    batch = task.order.batch(0, 4)
    terms = task.losses(batch)
    x = task.images([*map(task.data.views.central, batch.sample)])
    posterior = task.autoencoder.encode(x)
    deviation = (0.5 * posterior.logvar).exp()
    y = task.autoencoder.decode(
        posterior.mean + deviation * batch.normal(RandomStream.POSTERIOR, posterior.mean.shape[1:])
    )
    unit = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, deviation), unit
    ).mean()
    error = F.l1_loss(y, x) if pixel == "l1" else F.mse_loss(y, x)
    expected = error + 0.7 * gradient_difference(y, x, 3) + 0.01 * kl
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["kl"], kl)


def test_held_out_pictures_are_not_trained_on(first_stage_recipe: Read):
    task = FirstStageTask(first_stage_recipe(), Path("out"))
    assert (len(task.data.train), len(task.data.held_out)) == (10, 2)
    assert {*task.order.batch(0, 40).sample} == {*task.data.train}


def test_it_learns(first_stage_recipe: Read, tmp_path: Path):
    """Sixty small steps on ten pictures of two colours: the error falls by a third at least."""
    losses: list[float] = []
    recipe = first_stage_recipe(
        *("run.steps=60", "run.batch=8", "optimizer.learning_rate=1e-2", "loss.edges=0"),
        "optimizer.warm_up=3",
        "run.checkpoint_every=100",
    )
    train(recipe, tmp_path, observe=lambda progress: losses.append(progress.losses["pixel"]))
    assert sum(losses[-5:]) < sum(losses[:5]) * 2 / 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.size=15", "data.crop=15"], "both have to be multiples of 2"),
        (["data.size=15", "data.crop=8"], "both have to be multiples of 2"),
        (["data.crop=32"], "the crop no larger than the picture"),
        (
            ["data.folder=pyproject.toml"],
            "pyproject.toml is neither a folder of pictures",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: list[str], said: str, first_stage_recipe: Read):
    with pytest.raises(UndustError, match=said):
        FirstStageTask(first_stage_recipe(*changes), Path("out"))
