"""Models of films that are trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

import undust
from films import write_film_model
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import save_component
from undust.formats.film import write_film
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.training import kinds
from undust.training.encode import encode
from undust.training.film import FilmConfig, FilmTask
from undust.training.run import train

FIRST_STAGE = AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=1.0)
UNET: dict[str, Any] = {
    "block_out_channels": [32, 32],
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "num_attention_heads": 2,
    "layers_per_block": 1,
    "addition_time_embed_dim": 16,
}
IMAGE_ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 56,
    "projection_dim": 24,
}
Recipe = Callable[..., FilmConfig]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Four films of five frames, of which the last is held out, and one of two."""
    folder = tmp_path / "films"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for film, count in enumerate((5, 5, 5, 5, 2)):
        frames = [Image.new("RGB", (20, 16), (50 * film, 40 * k, 90)) for k in range(count)]
        for place, frame in enumerate(frames):
            frame.paste("white", (3 * place, 4, 3 * place + 6, 12))
        options = {"lossless": True, "duration": 125}
        frames[0].save(folder / f"{film}.webp", save_all=True, append_images=frames[1:], **options)
        split = "validation" if film == 3 else "train"
        rows.append({"file_name": f"{film}.webp", "motion": 10 * film, "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def recipe(films: Path, tmp_path: Path) -> Recipe:
    torch.manual_seed(0)
    first_stage = Autoencoder(FIRST_STAGE)
    with torch.no_grad():
        assert first_stage.quant_conv is not None
        assert first_stage.quant_conv.bias is not None
        first_stage.quant_conv.bias[4:] = -20  # latents without noise
    save_component(tmp_path / "first-stage", first_stage)
    tree: dict[str, Any] = {
        "kind": "film",
        "frames": 4,
        "first_stage": str(tmp_path / "first-stage"),
        "data": {"folder": str(films), "size": 16},
        "unet": UNET,
        "image_encoder": IMAGE_ENCODER,
        "optimizer": {"learning_rate": 1e-3},
        "run": {"steps": 3, "batch": 2, "log_every": 1, "checkpoint_every": 1, "keep": 1},
    }

    def made(**changes: Any) -> FilmConfig:
        changed = {**tree, **{key: value for key, value in changes.items() if key not in tree}}
        for key in tree.keys() & changes.keys():
            value = changes[key]
            changed[key] = {**tree[key], **value} if isinstance(value, dict) else value
        given = {key: value for key, value in changed.items() if value is not None}
        config = kinds.parse(given, "recipe")
        assert isinstance(config, FilmConfig)
        return config

    return made


def test_a_trained_one_makes_the_same_film_in_diffusers(recipe: Recipe, tmp_path: Path):
    config = recipe()
    torch.manual_seed(1)
    assert train(config, tmp_path / "run")
    folder, start = tmp_path / "run/model", torch.randn(4, 4, 8, 8)
    picture = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
    options: dict[str, Any] = {"frames": 4, "fps": 8, "motion": 20, "steps": 3}
    model = undust.load_video(folder, engine="torch")
    assert model.size == (16, 16)
    ours = model.animate(picture, noise=start, noise_augmentation=0, seed=0, **options)
    pipe = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        picture,
        height=16,
        width=16,
        num_frames=4,
        fps=8,
        motion_bucket_id=20,
        noise_aug_strength=0,
        num_inference_steps=3,
        latents=start[None],
        output_type="latent",
    ).frames[0]
    assert (ours.latents - theirs).norm() < 1e-4 * theirs.norm()


def test_a_film_is_trained_with_what_it_is(recipe: Recipe, tmp_path: Path):
    task = FilmTask(recipe().complete(), tmp_path / "run")
    assert "shorter than 4 frames, not trained on: 1 of 4 films" in task.notes
    assert sorted(len(starts) for starts in task.order.groups) == [2, 2, 2]
    batch = task.order.batch(0, 3)
    cond = task._condition(batch, [False] * 3)  # pyright: ignore[reportPrivateUsage]
    assert cond.size_ids is not None
    assert cond.size_ids[:, 0].tolist() == [7, 7, 7]
    assert sorted(cond.size_ids[:, 1].tolist()) == [0, 10, 20]
    assert cond.extra_channels is not None
    assert cond.extra_channels.shape == (3, 4, 4, 8, 8)
    losses = task.losses(batch)
    losses["loss"].backward()
    # The output begins at zero: the loss is that of nothing, and gradients reach its end alone.
    assert 0.5 < losses["loss"].item() < 2
    norms = {
        name: each.grad.norm()
        for name, each in task.modules.named_parameters()
        if each.grad is not None
    }
    assert norms["unet.conv_out.weight"] > 0


def test_the_limit_is_one_of_films(recipe: Recipe, tmp_path: Path):
    for limit, lengths in {2: 2, 4: 4, 9: 4}.items():
        task = FilmTask(recipe(data={"limit": limit}).complete(), tmp_path / str(limit))
        films = [task.frames[index].film for index in task.data.train]
        assert len({*films}) == lengths
        assert all(films.count(film) == (2 if film.stem == "4" else 5) for film in films)


@pytest.mark.parametrize("column", ["fps", "motion"])
def test_other_rates_and_motion_are_not_resumed(
    column: str, recipe: Recipe, films: Path, tmp_path: Path
):
    train(recipe(run={"steps": 1}), tmp_path / "run")
    rows = [json.loads(line) for line in (films / "metadata.jsonl").read_text().splitlines()]
    rows[0][column] = 99
    (films / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UndustError, match=r"the films' frame rates and motion was .* columns fps"):
        train(recipe(), tmp_path / "run", resume=True)


def test_it_is_trained_on_videos(recipe: Recipe, films: Path, tmp_path: Path):
    folder = tmp_path / "videos"
    for film in range(3):
        frames = [Image.new("RGB", (20, 16), (50 * film, 40 * k, 90)) for k in range(5 - film)]
        split = folder / ("validation" if film == 1 else "train")
        split.mkdir(parents=True, exist_ok=True)
        write_film(split / f"{film}.mp4", frames, 12, {})
    config = recipe(data={"folder": str(folder)}, run={"steps": 1})
    task = FilmTask(config.complete(), tmp_path / "task")
    assert "shorter than 4 frames, not trained on: 1 of 2 films" in task.notes
    assert [len(starts) for starts in task.order.groups] == [2]
    cond = task._condition(task.order.batch(0, 1), [False])  # pyright: ignore[reportPrivateUsage]
    assert cond.size_ids is not None
    assert cond.size_ids[0, :2].tolist() == [11, 127]
    assert train(config, tmp_path / "run")


def test_frames_in_succession_are_trained_on(recipe: Recipe, tmp_path: Path):
    """Of a film whose sixth frame is of another split."""
    folder, rows = tmp_path / "stills", list[dict[str, Any]]()
    folder.mkdir()
    for place in range(10):
        Image.new("RGB", (16, 16), (20 * place, 0, 90)).save(folder / f"{place}.png")
        rows.append({"file_name": f"{place}.png", "split": "test" if place == 5 else "train"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = FilmTask(recipe(data={"folder": str(folder)}).complete(), tmp_path / "run")
    assert task.order.groups == [[0, 1, 6]]


def test_a_film_with_a_damaged_frame_is_skipped(recipe: Recipe, films: Path, tmp_path: Path):
    """Also where its first frame is whole, or the number of frames is not known."""
    for name, kept in {"whole.png": 1.0, "cut.png": 0.9, "cut.gif": 0.9}.items():
        noise = [Image.effect_noise((16, 16), 60 + k).convert("RGB") for k in range(5)]
        noise[0].save(films / name, save_all=True, append_images=noise[1:], duration=125)
        content = (films / name).read_bytes()
        (films / name).write_bytes(content[: round(kept * len(content))])
    (films / "metadata.jsonl").unlink()
    with pytest.raises(UndustError, match=r"cut\."):
        FilmTask(recipe().complete(), tmp_path / "refused")
    task = FilmTask(recipe(data={"on_error": "skip"}).complete(), tmp_path / "run")
    told = [note for note in task.notes if "not all of their frames can be read" in note]
    assert told == [f"{films}: skipped because not all of their frames can be read: 2"]
    assert len(task.order.groups) == 5


def test_frames_of_different_sizes_are_told(recipe: Recipe, films: Path, tmp_path: Path):
    """Not those of two films, which are of one concept here."""
    rows = [{"file_name": "0.webp"}]
    for folder, sides in {"even": (16, 16), "other": (20, 20), "uneven": (16, 17)}.items():
        (films / folder).mkdir()
        for place, side in enumerate(sides):
            Image.new("RGB", (16, side)).save(films / folder / f"{place}.png")
            rows.append({"file_name": f"{folder}/{place}.png", "concept": "cups"})
    (films / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = FilmTask(recipe().complete(), tmp_path / "run")
    told = [note for note in task.notes if "different sizes" in note]
    assert told == [f"{films}: films whose frames have different sizes: 1: {films / 'uneven'}"]


@pytest.mark.parametrize("column", ["fps", "motion"])
@pytest.mark.parametrize("value", [7.5, 12.0, True])
def test_other_numbers_in_a_column_are_refused(
    column: str, value: object, recipe: Recipe, films: Path, tmp_path: Path
):
    row = {"file_name": "0.webp", column: value}
    (films / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(UndustError, match=rf"{films}: the column {column} has values that are no"):
        FilmTask(recipe().complete(), tmp_path / "run")


def test_films_are_not_encoded_for_several_runs(recipe: Recipe, tmp_path: Path):
    with pytest.raises(UndustError, match="of a diffusion model of pictures with a first stage"):
        encode(recipe(), tmp_path / "out", lambda _done, _all: None, lambda _done, _all: None)
    assert not (tmp_path / "out").exists()


def test_without_the_first_frame_there_is_none(recipe: Recipe, tmp_path: Path):
    task = FilmTask(recipe(drop=1.0).complete(), tmp_path / "run")
    cond = task._condition(task.order.batch(0, 2), [False] * 2)  # pyright: ignore[reportPrivateUsage]
    assert cond.text is not None
    assert cond.extra_channels is not None
    assert not cond.text.any()
    assert not cond.extra_channels.any()


def test_the_loss_falls(recipe: Recipe, tmp_path: Path):
    """Where noise hides the frames, they follow from the first one."""
    run = {"steps": 30, "batch": 3, "checkpoint_every": 30, "sample_every": 100}
    levels = {"p_mean": 3.0, "p_std": 0.3}
    config = recipe(run=run, optimizer={"learning_rate": 5e-3}, diffusion=levels)
    assert train(config, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_run_goes_on_as_if_it_had_not_stopped(recipe: Recipe, tmp_path: Path):
    for steps in (1, 3):
        config = recipe(run={"steps": steps}, data={"flip": True})
        assert train(config, tmp_path / "parts", resume=steps > 1)
    assert train(config, tmp_path / "whole")
    parts, whole = (
        safetensors_file.load(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors")
        for name in ("parts", "whole")
    )
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_model_is_trained_on(recipe: Recipe, tmp_path: Path):
    folder = write_film_model(tmp_path / "tiny-svd")
    config = recipe(model=str(folder), first_stage=None, unet=None, image_encoder=None)
    assert train(config, tmp_path / "run")
    before, after = (undust.load_video(each) for each in (folder, tmp_path / "run/model"))
    changed = [
        name
        for (name, old), new in zip(
            before.unet.state_dict().items(), after.unet.state_dict().values(), strict=True
        )
        if not torch.equal(old, new)
    ]
    assert changed
    for old, new in (
        (before.autoencoder, after.autoencoder),
        (before.image_encoder, after.image_encoder),
    ):
        kept = new.state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in old.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "x"}, "first_stage: the model has its own"),
        ({"unet": None}, "a new model needs first_stage and a table"),
        ({"image_encoder": None}, "a new model needs a table .image_encoder., or"),
        ({"image_encoder": {"image_size": 64}}, "image_size has to be 224"),
        ({"frames": 1}, "frames"),
        ({"data": {"buckets": True}}, "not for films"),
        ({"data": {"draw_by": "concept"}}, "data.draw_by: a film is drawn each time"),
        ({"figures": {"every": 3}}, "figures.every"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, Any], said: str, recipe: Recipe):
    with pytest.raises(UndustError, match=said):
        recipe(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 9}, "none of 4 films has 9 frames"),
        ({"diffusion": {"sigma_data": 0.5}}, "sigma_data = 1 and v_prediction"),
        ({"unet": {"cross_attention_dim": 9}}, "unet.cross_attention_dim is 9, but"),
        ({"unet": {"in_channels": 4}}, "unet.in_channels is 4, but"),
        ({"data": {"size": 18}}, "size: 18x18 is not divisible by 4"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Any], said: str, recipe: Recipe, tmp_path: Path
):
    with pytest.raises(UndustError, match=said):
        train(recipe(**change), tmp_path / "run")
