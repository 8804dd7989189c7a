"""Every kind of condition: trained, saved, loaded, sampled, and obeyed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

import undust
from undust.errors import UndustError
from undust.pictures import from_image
from undust.training import kinds
from undust.training.diffusion import DiffusionConfig
from undust.training.run import prepare, train

COLOURS = {"green": 1, "red": 0, "blue": 2}  # of `pictures`, and their channels
Recipe = Callable[..., DiffusionConfig]


def test_unconditional_pixels_open_as_ddpm(recipe: Recipe, tmp_path: Path) -> None:
    assert train(recipe(), tmp_path / "run")
    model = undust.load(tmp_path / "run/model")
    assert (model.size, model.latent_shape(16, 16), model.guidance) == ((16, 16), (3, 16, 16), 1)
    noise = torch.randn(1, 3, 16, 16)
    [picture] = model.generate([], noise=noise, sampler="euler", schedule="trailing", steps=4)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "run/model")
    assert isinstance(pipe.unet, diffusers.UNet2DModel)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    pipe.scheduler.set_timesteps(4)
    x = noise
    with torch.no_grad():
        for step in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, step).sample, step, x).prev_sample
    assert (picture.latent - x[0]).abs().max() < 1e-3


def test_labels_and_a_segmentation_are_obeyed(
    recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    """The label is the colour of the square, the map its place."""
    more = '[labels]\n[[maps]]\nkind = "segmentation"\ncolumn = "map"\nclasses = 2\n'
    assert train(
        recipe(more, "run.steps=120", "diffusion.prediction=v_prediction"), tmp_path / "run"
    )
    model = undust.load(tmp_path / "run/model")
    assert model.classes == ("blue", "green", "red")
    assert [(each.kind, each.colours) for each in model.maps] == [
        ("segmentation", ("#000000", "#ffffff"))
    ]
    for number, name in product((0, 1), COLOURS):
        shown = pictures / "maps" / f"{number}.png"
        options = {"label": name, "maps": str(shown), "guidance": 2}
        [picture] = model.generate([], **options, seed=3, steps=10)
        assert picture.recipe.label == name
        pixels = from_image(picture.image, (16, 16)).float()
        wanted = from_image(Image.open(shown), (16, 16))[0] > 0
        assert pixels[:, wanted].mean(1).argmax() == COLOURS[name]
        bright = pixels.amax(0)
        assert bright[wanted].mean() > 2 * bright[~wanted].mean()
    # By number, and the picture says again what it is of.
    [picture] = model.generate([], label="2", maps=str(shown), seed=1, steps=2)
    assert picture.recipe.label == "red"
    assert model.rerun(picture.recipe).image.tobytes() == picture.image.tobytes()
    with pytest.raises(UndustError, match="did you mean 'red'"):
        model.generate([], label="rde", maps=str(shown))
    with pytest.raises(UndustError, match="takes segmentation; 0 given"):
        model.generate([], label="red")
    with pytest.raises(UndustError, match="has the colour #ff0000, which is no class"):
        model.generate([], label="red", maps=[Image.new("RGB", (16, 16), "red")], steps=1)


def test_several_conditions_at_once(recipe: Recipe, pictures: Path, tmp_path: Path) -> None:
    """Text, class, depth and a picture, on latents, each dropped at its own rate."""
    more = (
        '[labels]\ndrop = 0.3\n[[maps]]\nkind = "depth"\ncolumn = "map"\ndrop = 0.5\n'
        '[[maps]]\nkind = "picture"\ncolumn = "map"\n[captions]\nvocabulary = 600\nlength = 8\n'
        "[text_encoder]\nhidden_size = 8\nintermediate_size = 16\nnum_hidden_layers = 1\n"
        "num_attention_heads = 2\n[unet]\nblock_out_channels = [8]\n"
        'down_block_types = ["CrossAttnDownBlock2D"]\nup_block_types = ["CrossAttnUpBlock2D"]\n'
        "layers_per_block = 1\nattention_head_dim = 2\nnorm_num_groups = 4\n"
    )
    with pytest.raises(UndustError, match="this has unet and unet2d"):
        recipe(more, first=None)
    text = (tmp_path / "recipe.toml").read_text("utf-8")
    begin, end = text.index("[unet2d]"), text.index("[optimizer]")
    (tmp_path / "recipe.toml").write_text(text[:begin] + text[end:], "utf-8")
    config = kinds.read(tmp_path / "recipe.toml")
    trainer, _ = prepare(config, tmp_path / "run")
    options = "--label blue --map depth.png --map picture.png;"
    assert options in trainer.task.next_steps(tmp_path, pictures)
    batch = trainer.task.order.batch(0, 4096)
    fields = {}
    for each in trainer.task.conditions:
        fields |= each.inputs(batch)
    dropped = [name is None for name in fields["label"]]
    depths, shown = zip(*fields["maps"], strict=True)
    assert sum(dropped) / 4096 == pytest.approx(0.3, abs=0.03)
    assert sum(each is None for each in depths) / 4096 == pytest.approx(0.5, abs=0.03)
    assert all(each is not None for each in shown)
    assert trainer.train(lambda _: None)
    model = undust.load(tmp_path / "run/model")
    assert model.unet.config.in_channels == 4 + 1 + 3
    image = Image.open(pictures / "maps/1.png")
    one, other = (
        model.generate("green", label="green", maps=[shown, image], seed=1, steps=2)[0]
        for shown in (image, Image.new("RGB", (16, 16)))
    )
    assert (one.latent - other.latent).abs().max() > 0


@pytest.mark.parametrize(
    ("more", "changes", "error"),
    [
        (
            '[labels]\ncolumn = "kind"',
            [],
            "12 of 12 pictures have no kind; columns of the data: fi",
        ),
        (
            '[[maps]]\nkind = "depth"\ncolumn = "deep"',
            [],
            "12 of 12 pictures have no deep; columns of the data: file_name, map, text",
        ),
        ('[[maps]]\nkind = "depth"\ncolumn = "text"', [], "the picture '.*' does not exist"),
        ('[[maps]]\nkind = "segmentation"\ncolumn = "map"', [], "classes is needed"),
        ("[captions]\ndrop = 0.2", [], "without a text_encoder there are none"),
        ("", ["unet2d.num_class_embeds=3"], "it follows from the labels"),
        ("", ["unet2d.in_channels=4"], "unet2d.in_channels is 4, but .* it has to be 3"),
    ],
)
def test_conditions_that_cannot_be(
    more: str, changes: list[str], error: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UndustError, match=error):
        prepare(recipe(more, *changes), tmp_path / "run")


def test_other_labels_or_maps_are_not_resumed(recipe: Recipe, pictures: Path, tmp_path: Path):
    config = recipe('[labels]\n[[maps]]\nkind = "depth"\ncolumn = "map"\n')
    _, notes = prepare(config, tmp_path / "notes")
    assert notes[-1] == "classes: blue (4), green (4), red (4)"
    train(config, tmp_path / "run")
    path = pictures / "maps/0.png"
    before = path.read_bytes()
    Image.new("RGB", (16, 16), "white").save(path)
    try:
        with pytest.raises(UndustError, match="the digest of the labels and maps"):
            prepare(config, tmp_path / "run", resume=True)
    finally:
        path.write_bytes(before)


def test_a_recipe_without_text_is_read_again(recipe: Recipe) -> None:
    config = recipe()
    assert kinds.parse(config.model_dump(mode="json"), "here") == config
