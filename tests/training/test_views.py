"""Views of pictures: sizes, crops and mirror images; runs in buckets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from undust.datasets import image_folder
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import load_first_stage
from undust.latent.conditioner import ConditionInputs, SizeEmbedder
from undust.pictures import from_image
from undust.training.caches import ImageCache
from undust.training.data import Batch
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.loop import TrainingProgress
from undust.training.run import prepare, train
from undust.training.views import View

Recipe = Callable[..., DiffusionConfig]
SIZES = [(16, 16), (30, 20), (60, 40), (20, 30), (10, 10), (90, 20)]
SMOOTH = np.linspace(0, 255, 90, dtype=np.uint8)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Pictures of several shapes, six to train on, two held out: red to the right, green down."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    rows: list[dict[str, str]] = []
    for number, (width, height) in enumerate([*SIZES, (30, 20), (16, 16)]):
        red, green = np.meshgrid(SMOOTH[:width], SMOOTH[:height])
        blue = np.full_like(red, 20 * number)
        Image.fromarray(np.stack([red, green, blue], -1)).save(folder / f"{number}.png")
        split = "test" if number >= len(SIZES) else "train"
        rows.append({"file_name": f"{number}.png", "text": f"number {number}", "split": split})
    image_folder.write(folder, rows)
    return folder


def draw(samples: list[int], seed: int = 0) -> Batch:
    count = len(samples)
    return Batch(seed, 0, tuple(samples), (0,) * count, tuple(range(count)))


def test_two_buckets_train_in_one_run_and_a_resumed_one_goes_on(
    recipe: Recipe, shapes: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
):
    """With flips and crops; enlarged pictures and long ones are told."""
    keys = ["data.buckets=true", "data.flip=true", "data.crops=3", f"data.folder={shapes}"]
    given = recipe("", *keys, "run.batch=2", "run.steps=8", "run.checkpoint_every=3", first="")
    shapes_seen: list[tuple[int, ...]] = []
    trainer, notes = prepare(given, tmp_path / "whole")
    unet = trainer.task.modules["unet"]
    unet.register_forward_pre_hook(lambda _, inputs: shapes_seen.append(tuple(inputs[0].shape)))
    assert trainer.train(lambda _: None)
    assert notes[:3] == [
        "buckets: 20x12 (3), 16x16 (2), 12x20 (1)",
        "smaller than their bucket and enlarged: 1 of 8 pictures",
        "longer than data.max_ratio = 2 and cropped to it: 1 of 8 pictures",
    ]
    assert {(2, 4, 6, 10), (2, 4, 8, 8)} <= {*shapes_seen}

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "stopped", observe=stop)
    assert train(given, tmp_path / "stopped", resume=True)
    assert contents(tmp_path / "stopped/model") == contents(tmp_path / "whole/model")


def test_the_latents_of_a_view_are_those_of_its_pixels(
    recipe: Recipe, shapes: Path, first_stage: Path, tmp_path: Path
):
    """Of a mirrored crop: the encoder's of the mirrored crop; those held out have one view."""
    keys = ["data.buckets=true", "data.flip=true", "data.crops=3", f"data.folder={shapes}"]
    task = DiffusionTask(recipe("", *keys, first="").complete(), tmp_path / "run")
    views = task.data.views
    assert [len(views.of(k)) for k in range(8)] == [2, 4, 4, 4, 2, 6, 1, 1]
    view = View(5, (20, 12), 1.0, flip=True)  # the right end of 90x20
    assert view in views.of(5)
    image = Image.open(shapes / "5.png")
    right = image.resize((20, 12), Image.Resampling.LANCZOS, box=(90 - 20 * 20 / 12, 0, 90, 20))
    x = from_image(ImageOps.mirror(right), (20, 12))[None] / 127.5 - 1
    posterior = load_first_stage(first_stage).encode(x)
    found = task.latents.posterior([view])  # type: ignore[union-attr]
    torch.testing.assert_close(found.mean, 0.18215 * posterior.mean)
    kept = safetensors_file.header(tmp_path / "run/latents.safetensors").tensors
    assert {name: entry.shape[0] for name, entry in kept.items() if "mean" in name} == {
        "mean": 4,
        "mean 20x12": 14,
        "mean 12x20": 4,
    }


def test_half_are_mirrored_and_every_crop_is_drawn(recipe: Recipe, shapes: Path, tmp_path: Path):
    keys = ["data.flip=true", "data.crops=3", f"data.folder={shapes}"]
    views = DiffusionTask(recipe("", *keys).complete(), tmp_path / "run").data.views
    drawn = views.drawn(draw([1] * 600))
    assert sum(view.flip for view in drawn) == pytest.approx(300, abs=4 * 150**0.5)
    for place in (0.0, 0.5, 1.0):
        count = sum(view.place == place for view in drawn)
        assert count == pytest.approx(200, abs=4 * (600 * 2 / 9) ** 0.5)
    assert drawn == views.drawn(draw([1] * 600))


def test_sizes_are_told_to_a_network_that_takes_them(recipe: Recipe, shapes: Path, tmp_path: Path):
    """Podell et al. 2023, section 2.2, of 90x20 as 20x12: resized to 54x12, cut at the right."""
    keys = ["data.buckets=true", "data.flip=true", "data.crops=2", f"data.folder={shapes}"]
    views = DiffusionTask(recipe("", *keys, first="").complete(), tmp_path / "run").data.views
    batch = draw([5] * 40)
    fields = views.inputs(batch, framing=True)
    ids = SizeEmbedder(6, (16, 16))(ConditionInputs([None] * 40, fields)).size_ids
    assert ids is not None
    for view, row in zip(views.drawn(batch), ids.tolist(), strict=True):
        left = 54 - 20 if (view.place == 1) != view.flip else 0
        assert row == [20, 90, 0, left, 12, 20]
    assert len({(view.place, view.flip) for view in views.drawn(batch)}) == 4


def test_maps_follow_their_pictures(recipe: Recipe, pictures: Path, tmp_path: Path):
    """A square is where its map is, in every mirrored view."""
    text = '[[maps]]\nkind = "segmentation"\ncolumn = "map"\nclasses = 2'
    task = DiffusionTask(recipe(text, "data.flip=true").complete(), tmp_path)
    batch = task.order.batch(0, 32)
    [maps] = task.conditions
    found = torch.stack([each for (each,) in maps.inputs(batch)["maps"]])
    z = task.latents.sample(batch)
    assert torch.equal(found[:, 0] == 1, z.amax(1) > -1)
    flips = {(view.sample % 2, view.flip) for view in task.data.views.drawn(batch)}
    assert len(flips) == 4


def test_a_first_stage_sees_mirrored_pictures(first_stage_recipe: Recipe, tmp_path: Path):
    task = first_stage_recipe("data.flip=true").task(tmp_path, None, lambda _d, _a: None)
    views = task.data.views.drawn(task.order.batch(0, 16))  # type: ignore[attr-defined]
    assert {view.flip for view in views} == {False, True}
    images = ImageCache(task.data.source)  # type: ignore[attr-defined]
    whole = images([view._replace(flip=False) for view in views])
    for view, one, other in zip(views, images(views), whole, strict=True):
        assert torch.equal(one, other.flip(-1) if view.flip else other)


def test_wrong_keys_are_refused(
    recipe: Recipe, first_stage_recipe: Recipe, shapes: Path, tmp_path: Path
):
    with pytest.raises(UndustError, match="max_ratio is of buckets"):
        recipe("", "data.max_ratio=3")
    with pytest.raises(UndustError, match="a first stage is trained on squares"):
        train(first_stage_recipe("data.buckets=true"), tmp_path / "run")
    (shapes / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + json.dumps(SIZES).encode())
    with pytest.raises(UndustError, match=r"3\.png"):
        train(recipe("", "data.buckets=true", f"data.folder={shapes}"), tmp_path / "run")
