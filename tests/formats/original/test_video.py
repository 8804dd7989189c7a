"""Stable Video Diffusion's single file, against the original implementation and the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import undust
from films import tiny_pipeline, write_single_file
from made_weights import made_weights, uniform
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.known_hashes import known_hash
from undust.formats.original.variants import FIRST_STAGE, UNET
from undust.formats.original.video import (
    VISION,
    is_video_file,
    read_video_file,
    scan_video_file,
)
from undust.generation.animation import decode_film, sample_film
from undust.latent.video import VideoModel
from undust.networks.conditioning import Conditioning
from undust.recipe.files import ImageRef
from undust.recipe.film import FilmRecipe

ORIGINAL = Path(__file__).parent / "films" / "svd-tiny.safetensors"
SLOW = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def original() -> tuple[Shapes, dict[str, Tensor]]:
    """Names and shapes of the original's weights, and its outputs."""
    shapes = json.loads(safetensors_file.header(ORIGINAL).metadata["shapes"])
    return {key: tuple(shape) for key, shape in shapes.items()}, safetensors_file.load(ORIGINAL)


@pytest.fixture(scope="module")
def shapes(original: tuple[Shapes, dict[str, Tensor]]) -> Shapes:
    return original[0]


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_networks_give_what_the_original_gives(original, save):
    """The original's inputs, as in films/make.py; its fps, motion and noise are sinusoids there."""
    shapes, outputs = original
    parts = read_video_file(save(made_weights(shapes)), None)
    assert parts.unet.config.num_attention_heads == (1, 2, 2)
    x = uniform("x", (6, 8, 8, 8)).unflatten(0, (2, 3))
    cond = Conditioning(
        2,
        text=uniform("context", (2, 1, 24)),
        size_ids=torch.tensor([[6.0, 127.0, 0.02], [9.0, 30.0, 0.1]]),
        extra_channels=x[:, :, 4:],
    )
    found = parts.unet(x[:, :, :4], torch.tensor([1.3, -0.7]), cond)
    assert relative(found.flatten(0, 1), outputs["unet"]) < 1e-5
    frames = parts.autoencoder.decode(uniform("z", (3, 4, 4, 4)))
    assert relative(frames, outputs["frames"]) < 1e-5
    latent = parts.autoencoder.encode(uniform("picture", (1, 3, 16, 16)))
    assert relative(latent.mean, outputs["moments"][:, :4]) < 1e-5
    eye = parts.image_encoder
    picture = (uniform("normalised", (1, 3, 224, 224)) * eye.std + eye.mean) * 2 - 1
    assert relative(eye.pooled(picture), outputs["embedding"]) < 1e-5


@pytest.mark.parametrize(("name", "frames"), [("svd", 14), ("svd_xt", 25), ("svd_xt_1_1", 25)])
def test_the_published_file_is_known_whole(name, frames, published, hollow):
    path = hollow(published("svd"))
    path = path.rename(path.with_name(f"{name}.safetensors"))
    assert path.stat().st_size / 1e9 == pytest.approx(9.56 / 2, abs=0.01)  # half of the published
    assert is_video_file(path)
    found = scan_video_file(path)
    unet, vae = found.parts["unet"].network.config, found.parts["vae"].network.config
    assert unet.num_frames == frames
    assert (unet.num_attention_heads, unet.cross_attention_dim) == ((5, 10, 20, 20), 1024)
    assert (unet.addition_time_embed_dim, unet.layers_per_block) == (256, 2)
    assert (vae.block_out_channels, vae.scaling_factor) == ((128, 256, 512, 512), 0.18215)
    eye = found.parts["image_encoder"].network.shape
    assert (eye.width, eye.depth, eye.heads, eye.hidden) == (1280, 32, 16, 5120)
    assert (eye.patch, eye.image_size, eye.projection, eye.quick_gelu) == (14, 224, 1024, False)
    used = sum(len({place.key for place in part.key_map.values()}) for part in found.parts.values())
    assert used + sum(found.ignored.values()) == len(published("svd"))
    assert found.ignored == {
        "CLIP's text encoder": 5,
        "training of CLIP": 1,
        "decoder of pictures": 140,
        "encoder of training": 106,
    }


def test_a_film_from_the_file_is_that_from_the_folder(tmp_path):
    pipeline = tiny_pipeline(heads=1)
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(tmp_path / "tiny.safetensors", tmp_path / "folder")
    folder, single = (VideoModel.load(path, engine="torch") for path in (tmp_path / "folder", file))
    assert (single.name, single.hash) == ("tiny", known_hash(file)[:10])
    assert (single.process, single.prediction) == (folder.process, folder.prediction)
    assert single.unet.config.num_frames == 14
    pixels = torch.randint(0, 256, (24, 32, 3), generator=torch.manual_seed(3)).byte()
    recipe = FilmRecipe(
        picture=ImageRef.of(Image.fromarray(pixels.numpy())),
        width=32,
        height=24,
        frames=4,
        steps=3,
        seed=5,
        decoded_frames=4,
    )
    one, other = (list(sample_film(model, recipe))[-1] for model in (folder, single))
    assert torch.equal(one.x, other.x)
    films = decode_film(recipe, one), decode_film(recipe, other)
    assert [each.tobytes() for each in films[0].frames] == [
        each.tobytes() for each in films[1].frames
    ]


def test_half_precision_is_kept_or_converted(shapes, save):
    weights = {key: tensor.half() for key, tensor in made_weights(shapes).items()}
    path = save(weights)
    kept, wide = read_video_file(path, None), read_video_file(path, torch.float32)
    for name, network in kept.networks.items():
        state = wide.networks[name].state_dict()
        for key, tensor in network.state_dict().items():
            assert tensor.dtype == torch.float16
            assert torch.equal(state[key], tensor.float())
    picture = uniform("picture", (1, 3, 64, 64))
    usual, small = (
        VideoModel.load(path, engine="torch", low_memory=low).embed(picture)
        for low in (False, True)
    )
    assert torch.equal(usual, small)


def test_a_file_that_was_cut_short_is_named(shapes, hollow, tmp_path):
    whole = hollow(shapes).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 100, 20_000, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(UndustError, match=r"cut\.safetensors is "):
            VideoModel.load(cut)


def refused(path: Path) -> str:
    with pytest.raises(UndustError) as error:
        scan_video_file(path)
    said = str(error.value)
    assert "\n" not in said
    assert str(path) in said
    return said


@SLOW
@given(data=st.data())
def test_whatever_is_missing_is_named(data, shapes, hollow):
    found = dict(shapes)
    key = data.draw(st.sampled_from(sorted(found)))
    del found[key]
    # By its own name, or by its neighbours' if it is what shows that there are any.
    assert key.split(".")[0] in refused(hollow(found))


@settings(SLOW, max_examples=16)
@given(
    prefix=st.sampled_from(["", UNET, FIRST_STAGE, VISION]),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=99),
)
def test_whatever_is_unknown_is_named(prefix, name, shapes, hollow):
    if prefix + name not in shapes and prefix + name != "__metadata__":
        assert "1 unknown: " in refused(hollow({**shapes, prefix + name: (1,)}))


@SLOW
@given(data=st.data())
def test_no_wrong_shape_is_taken_for_a_right_one(data, shapes, hollow):
    key = data.draw(st.sampled_from(sorted(shapes)))
    other = data.draw(
        st.lists(st.integers(0, 200), max_size=4).map(tuple).filter(lambda s: s != shapes[key])
    )
    pixel = len(shapes[key]) == 4 and other == shapes[key][:2]
    if not pixel:
        refused(hollow({**shapes, key: other}))


def test_what_needs_no_network_is_told_apart(shapes, hollow):
    beside = {"model_ema.decay": (), "denoiser.sigmas": (1000,), f"{FIRST_STAGE}loss.x": (1,)}
    found = scan_video_file(hollow({**shapes, **beside}))
    assert found.ignored == {
        "moving averages of the weights": 1,
        "noise schedule": 1,
        "training of the first stage": 1,
    }


def test_other_numbers_beside_the_time_are_refused(shapes, hollow):
    key = f"{UNET}label_emb.0.0.weight"
    assert "has 80 input channels, which are not those of 3 numbers" in refused(
        hollow({**shapes, key: (shapes[key][0], 80)})
    )


def test_each_loader_names_the_command_for_the_other(tiny, shapes, save, hollow):
    picture = save(tiny("sd1").original())
    with pytest.raises(UndustError, match=r"of pictures; use it with `undust generate`"):
        VideoModel.load(picture)
    with pytest.raises(UndustError, match=r"hollow.*of films; use it with `undust animate`"):
        undust.load(hollow(shapes))
    assert refused(hollow({"a": (1,)})).endswith("of films: it has no U-Net over frames")
