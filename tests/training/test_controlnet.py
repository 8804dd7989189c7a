"""ControlNets that are trained here: no change at first, and the same picture in diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import undust
from undust.conditioning.canny import canny_edges
from undust.diffusion.process import DISCRETE
from undust.errors import UndustError
from undust.formats import controlnet
from undust.formats.folder import read_json
from undust.networks.config import UNet2DConfig
from undust.networks.identity import IdentityFirstStage
from undust.networks.unet import UNet2D
from undust.pictures import from_image, read_image, to_images
from undust.pipeline import LatentDiffusion
from undust.training import kinds
from undust.training.controlnet import ControlNetTask, ControlNetTrainingConfig
from undust.training.run import train

Folder = Callable[[str], Path]
Recipe = Callable[..., ControlNetTrainingConfig]
CANNY = {"kind": "canny"}
OURS: dict[str, Any] = {"steps": 3, "sampler": "ddim", "schedule": "leading", "guidance": 3}
PROMPT = "sky over sand"


@pytest.fixture
def recipe(existing_recipe: Callable[..., Any]) -> Recipe:
    figures = {"every": 0, "pictures": 4, "steps": 1}
    return partial(existing_recipe, "controlnet", condition=CANNY, figures=figures)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture with edges."""
    image = Image.new("RGB", (64, 64), "navy")
    image.paste("orange", (13, 20, 50, 44))
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def painted(model: undust.LatentDiffusion, *controls: str) -> Tensor:
    """The latent that a model paints under hints."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0))
    [made] = model.generate(PROMPT, noise=noise, controls=[*controls], **OURS)
    return made.latent


@pytest.mark.parametrize("variant", ["sd1", "sdxl"])
def test_before_the_first_step_no_bit_changes(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path, picture: Path
):
    task = ControlNetTask(recipe(variant_folder(variant)), tmp_path / "run")
    batch = task.order.batch(0, 4)
    loss = task.losses(batch)["loss"]
    task.publish(tmp_path / "control")
    model = undust.load(variant_folder(variant))
    control = f"{tmp_path / 'control'}=canny:{picture}"
    assert torch.equal(painted(model, control), painted(model))
    task.denoiser = lambda _: task.denoise
    assert torch.equal(loss, task.losses(batch)["loss"])


@pytest.mark.parametrize("variant", ["sd1", "sd2-v", "sdxl"])
def test_a_trained_one_paints_the_same_in_diffusers(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path, picture: Path
):
    folder = variant_folder(variant)
    before = undust.load(folder).hash
    assert train(recipe(folder), tmp_path / "run")
    found, notes = diffusers.ControlNetModel.from_pretrained(
        tmp_path / "run/model", output_loading_info=True
    )
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    kind = read_json(folder / "model_index.json")["_class_name"]
    spare = {} if variant == "sdxl" else {"safety_checker": None}
    pipe = getattr(diffusers, kind.replace("Pipeline", "ControlNetPipeline")).from_pretrained(
        folder, controlnet=found, **spare
    )
    pipe.set_progress_bar_config(disable=True)
    edges = to_images(2 * canny_edges(read_image(picture))[None] - 1)[0]
    theirs = pipe(
        PROMPT,
        image=edges,
        latents=torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0)),
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    model = undust.load(folder)
    ours = painted(model, f"{tmp_path / 'run/model'}=canny:{picture}")
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert (painted(model) - theirs).norm() > 1e-2 * theirs.norm()
    assert model.hash == before


def test_a_run_goes_on_as_if_it_had_not_stopped(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """Also one that starts from another ControlNet."""
    folder = variant_folder("sd1")
    (tmp_path / "first").mkdir()
    ControlNetTask(recipe(folder), tmp_path).publish(tmp_path / "first/model")
    for steps in (1, 3):
        config = recipe(folder, init=str(tmp_path / "first"), run={"steps": steps})
        assert train(config, tmp_path / "parts", resume=steps > 1)
    assert train(config, tmp_path / "whole")
    first, one, other = (
        controlnet.load(tmp_path / name / "model").state_dict()
        for name in ("first", "parts", "whole")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not all(torch.equal(one[key], first[key]) for key in one)
    other_init = recipe(folder, init=str(tmp_path / "whole"), run={"steps": 4})
    with pytest.raises(UndustError, match="the digest of the weights that it starts from was"):
        train(other_init, tmp_path / "parts", resume=True)


def test_the_agreement_is_logged_beside_chance_and_the_models_own(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """With a rate of almost 0 it is the model's own; the pictures are those held out."""
    config = recipe(
        variant_folder("sd1"),
        figures={"every": 1, "pictures": 4, "steps": 1},
        optimizer={"learning_rate": 1e-30},
        run={"steps": 1},
    )
    assert train(config, tmp_path)
    [row] = map(json.loads, (tmp_path / "log.jsonl").read_text("utf-8").splitlines())
    basis = "2 held-out pictures, 32x32, seed 0"
    name = "F-measure of edges"
    assert 0 <= row[f"{name}, {basis}"] <= 1
    assert row[f"{name}, {basis}"] == row[f"{name}, without the ControlNet, {basis}"]
    assert f"{name}, others' hints, {basis}" in row
    with Image.open(tmp_path / "samples/step-00000001.png") as sheet:
        assert sheet.size == (2 + 2 * 34, 2 + 2 * 34)  # two hints above two pictures


def test_maps_beside_pictures_are_hints_at_their_full_size(
    variant_folder: Folder, recipe: Recipe, pictures: Path, tmp_path: Path
):
    column = {"kind": "map", "column": "map"}
    data = {"folder": str(pictures), "size": 16}
    config = recipe(variant_folder("sd1"), condition=column, data=data)
    task = ControlNetTask(config, tmp_path)
    [hint] = task.hints([task.data.views.central(3)])
    drawn = Image.open(pictures / task.data.samples[3].column("map")).convert("RGB")
    assert to_images(2 * hint[None] - 1)[0].tobytes() == drawn.tobytes()
    images = [task.data.samples[k].image() for k in (3, 4)]
    found = task.hints.agreement(images, task.hints.wanted([3, 3]))
    assert found[0] == torch.inf
    assert found[1] < 30
    assert task.inputs["conditions"]
    assert f"--control {tmp_path / 'model'}=MAP.png" in task.next_steps(
        tmp_path / "model", pictures
    )


def test_edges_are_those_of_each_view(variant_folder: Folder, recipe: Recipe, tmp_path: Path):
    """Also of mirror images, whose edges are not quite mirrored."""
    task = ControlNetTask(recipe(variant_folder("sd1"), data={"flip": True}), tmp_path)
    views = task.data.views.drawn(task.order.batch(0, 8))
    assert {view.flip for view in views} == {False, True}
    for hint, view in zip(task.hints(views), views, strict=True):
        image = task.data.samples[view.sample].image()
        image = ImageOps.mirror(image) if view.flip else image
        expected = canny_edges(from_image(image, view.size).float() / 255)
        assert torch.equal(hint, expected)
        assert hint.any()


REFUSED = [
    ({"condition": {"kind": "map"}}, "condition: column is needed for kind map"),
    ({"condition": {**CANNY, "column": "map"}}, "condition: column is needed for kind map"),
    ({"condition": {**CANNY, "high": 1e5}}, "none of 10 pictures has edges with the thresholds"),
    ({"condition": {**CANNY, "low": 201}}, "low is 201 and high 200"),
    (
        {"condition": {"kind": "map", "column": "map", "low": 1}},
        "low and high are thresholds of kind canny",
    ),
    (
        {"condition": {"kind": "map", "column": "depth"}},
        "12 of 12 pictures have no depth; columns of the data: ",
    ),
    ({"model": "sd1-inpainting"}, "takes 5 channels beside the latents, for inpainting"),
    ({"init": "nowhere"}, "init: nowhere does not exist"),
    ({"init": "sdxl"}, "init: the ControlNet is for another kind of model: it takes texts as wide"),
    ({"figures": {"features": "vgg16"}}, "figures: a ControlNet is measured by its agreement"),
    ({"prior": {"prompt": "a thing"}}, "prior: a ControlNet leaves the model as it is"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_bad_recipes_are_refused(
    change: dict[str, Any], message: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    change = {**change}
    if change.get("init") == "sdxl":
        ControlNetTask(recipe(variant_folder("sdxl")), tmp_path).publish(tmp_path / "other")
        change["init"] = str(tmp_path / "other")
    model = variant_folder(change.pop("model", "sd1"))
    with pytest.raises(UndustError, match=message) as error:
        ControlNetTask(recipe(model, **change), tmp_path)
    assert "\n" not in str(error.value)


def test_a_unet_without_text_has_no_controlnet(recipe: Recipe, tmp_path: Path):
    fields = {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 4,
    }
    network = UNet2D(UNet2DConfig.read(fields))
    process = DISCRETE["linear"](1000, 1e-4, 0.02)
    LatentDiffusion(IdentityFirstStage(), network, (), process, "epsilon").save(tmp_path / "model")
    with pytest.raises(UndustError, match="has a UNet2D; ControlNets are for U-Nets with text"):
        ControlNetTask(recipe(tmp_path / "model"), tmp_path)


def test_json_of_a_recipe_is_read_again(recipe: Recipe):
    for condition in (CANNY, {"kind": "map", "column": "map"}):
        config = recipe("emoji", condition=condition)
        assert kinds.parse(json.loads(config.model_dump_json()), "here") == config
