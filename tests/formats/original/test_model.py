"""A single file is painted with, offline, and gives the picture that diffusers gives."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import undust
from undust.conditioning.clip import clip
from undust.errors import UndustError
from undust.formats import safetensors_file, standalone_vae
from undust.formats.components import save_component
from undust.formats.original.checkpoint import scan_checkpoint, to_original
from undust.formats.original.variants import FIRST_STAGE, VARIANTS
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.networks.text_encoder import TextEncoder
from undust.pipeline import LatentDiffusion

BY_DIFFUSERS = ("sd1", "sd2", "sd2-v")  # whose files diffusers reads without the network
PROMPT = "a cat, oil painting"  # without "!", which is no word for transformers where it pads


@pytest.fixture(scope="module", params=VARIANTS)
def file(request, tiny, tmp_path_factory) -> Path:
    return write(request.param, tiny, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def model(file: Path) -> LatentDiffusion:
    """As it is loaded from the file; it is not to be changed."""
    return undust.load(file)


def write(variant: str, tiny, folder: Path, **changes: int) -> Path:
    """A file of a tiny model that reads CLIP's words."""
    parts = dict(tiny(variant).parts)
    for text in VARIANTS[variant].texts:
        config, _ = parts[text.folder]
        words = {"vocab_size": 49408, "max_position_embeddings": 77, **changes}
        config = config.model_copy(update=words)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            parts[text.folder] = (config, TextEncoder(config).state_dict())
    for part in ("unet", "vae"):  # random, but no larger than weights are
        config, own = parts[part]
        parts[part] = (
            config,
            {k: t / 10 + ("norm" in k and "weight" in k) for k, t in own.items()},
        )
    path = folder / f"{variant}.safetensors"
    safetensors_file.save(path, to_original(VARIANTS[variant], parts))
    return path


def test_its_first_stage_alone_has_the_scale_of_the_variant(file: Path, model: LatentDiffusion):
    assert standalone_vae.empty(file).config.scaling_factor == VARIANTS[file.stem].scaling_factor
    got, expected = (
        standalone_vae.load(file).state_dict(),
        model.autoencoder.state_dict(),
    )
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("file", BY_DIFFUSERS, indirect=True)
def test_the_picture_is_that_of_diffusers(file: Path, model: LatentDiffusion, tmp_path: Path):
    model.save(tmp_path / "folder")  # the configurations, which diffusers does not find in a file
    theirs = StableDiffusionPipeline.from_single_file(
        file, config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    theirs.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder"):
        own = getattr(theirs, name).state_dict()
        ours = model.networks[name].state_dict()
        found = {key.removeprefix("text_model."): t for key, t in ours.items()}
        assert found.keys() == {key.removeprefix("text_model.") for key in own}
        assert all(torch.equal(t, found[key.removeprefix("text_model.")]) for key, t in own.items())
    noise = torch.randn(1, *model.latent_shape(64, 64), generator=torch.manual_seed(0))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    expected = theirs(PROMPT, latents=noise, height=64, width=64, **options).images
    (got,) = model.generate(
        PROMPT, noise=noise, size=64, steps=4, guidance=3.0, sampler="ddim", schedule="leading"
    )
    assert got.latent.shape == expected[0].shape
    assert (got.latent - expected[0]).norm() < 1e-4 * expected.norm()
    assert expected.isfinite().all()
    (other,) = model.generate(
        "a dog", noise=noise, size=64, steps=4, guidance=3.0, sampler="ddim", schedule="leading"
    )
    assert (other.latent - got.latent).norm() > 1e-3 * expected.norm()


def test_the_folder_of_a_file_is_the_same_model(file: Path, model: LatentDiffusion, tmp_path: Path):
    assert model.name == file.stem
    assert model.hash == hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    assert model.prediction == VARIANTS[file.stem].prediction
    assert model.unet.config.sample_size * model.downsampling_factor == VARIANTS[file.stem].size
    model.save(tmp_path / "folder")
    again = undust.load(tmp_path / "folder")
    assert again.prediction == model.prediction
    assert again.unet.config == model.unet.config
    assert again.force_zeros_for_empty_prompt == model.force_zeros_for_empty_prompt
    assert (again.low_res_process is None) == (model.low_res_process is None)
    for ours, theirs in zip(model.texts, again.texts, strict=True):
        assert ours.tokenizer == theirs.tokenizer
        assert (ours.penultimate, ours.pooled) == (theirs.penultimate, theirs.pooled)
    assert again.networks.keys() == model.networks.keys()
    for name, network in model.networks.items():
        state, own = again.networks[name].state_dict(), network.state_dict()
        assert state.keys() == own.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in own.items())


def test_every_variant_is_painted_with(model: LatentDiffusion):
    start = {"init": Image.new("RGB", (16, 16)), "noise_level": 9}
    start = start if model.low_res_process else {"size": 64}
    (got,) = model.generate(PROMPT, seed=1, steps=2, **start)
    assert got.latent.isfinite().all()


@pytest.mark.parametrize("left", ["nothing", "the decoder", "everything"])
def test_another_first_stage_is_used_whatever_there_is(left: str, tiny, tmp_path: Path):
    """Many files come without one, or with half of one."""
    path = write("sd1", tiny, tmp_path)
    whole = safetensors_file.load(path)
    parts = {"nothing": "no.such", "the decoder": f"{FIRST_STAGE}decoder.", "everything": ""}
    kept = {k: t for k, t in whole.items() if not k.startswith(FIRST_STAGE) or parts[left] in k}
    safetensors_file.save(path, kept)
    # With nothing to go by it is as in published models: 8 times smaller.
    levels = 4 if left == "nothing" else 3
    config = AutoencoderConfig(block_out_channels=(32,) * levels, scaling_factor=0.18215)
    network = Autoencoder(config)
    save_component(tmp_path / "vae", network)
    model = undust.load(path, vae=tmp_path / "vae")
    assert model.size == (512, 512)
    assert torch.equal(model.autoencoder.last_layer, network.last_layer)
    half = undust.load(path, vae=tmp_path / "vae", dtype=torch.float16)
    assert {weight.dtype for weight in half.autoencoder.parameters()} == {torch.float16}
    assert half.hash == model.hash
    if left != "everything":
        lacks = "has no first stage" if left == "nothing" else "has no encoder"
        with pytest.raises(UndustError, match=lacks):
            undust.load(path)
    if left == "nothing":
        assert list(scan_checkpoint(path).parts) == ["text_encoder", "unet"]


def test_what_belongs_to_nothing_is_named_and_left_out(tiny, tmp_path: Path):
    path = write("sd1", tiny, tmp_path)
    expected = undust.load(path)
    stray = {"state_dict.foo": torch.zeros(1), "__step__": torch.zeros(1)}
    safetensors_file.save(path, {**safetensors_file.load(path), **stray})
    with pytest.warns(RuntimeWarning, match="2 unknown and left out: __step__, state_"):
        model = undust.load(path)
    for name, network in expected.networks.items():
        own = model.networks[name].state_dict()
        assert all(torch.equal(own[key], weight) for key, weight in network.state_dict().items())


def test_precision(file: Path):
    model = undust.load(file, dtype=torch.bfloat16)
    for network in model.networks.values():
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not network.training


def test_no_network_is_asked(tiny, tmp_path: Path):
    """Painting from a file with every socket refused."""
    path = write("sd1", tiny, tmp_path)
    code = f"""
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise AssertionError(event)
sys.addaudithook(refuse)
from undust.cli import main
out = {str(tmp_path / "out.png")!r}
asked = ["a cat", "--model", {str(path)!r}, "--size", "64x64", "--steps", "1", "--out", out]
assert main(["generate", *asked]) == 0
import socket
socket.getaddrinfo("localhost", 80)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{tmp_path / 'out.png'}\n", done.stderr
    assert "AssertionError: socket.getaddrinfo" in done.stderr  # the refusal itself works


def test_a_first_stage_is_no_model(tiny, save):
    with pytest.raises(UndustError, match="is a first stage alone"):
        undust.load(save(to_original(None, {"vae": tiny("sd1").parts["vae"]})))


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 49409}, {"vocab_size": 500}, {"max_position_embeddings": 76}]
)
def test_other_words_than_clips_are_refused(changes, tiny, tmp_path):
    with pytest.raises(UndustError, match=r"CLIP's has 49408 and 77"):
        undust.load(write("sd1", tiny, tmp_path, **changes))


def test_what_fills_up_a_prompt_is_the_variants():
    assert clip(VARIANTS["sd1"].texts[0].padding)(["cat"])[0, -1] == 49407
    assert clip(VARIANTS["sd2"].texts[0].padding)(["cat"])[0, 2:5].tolist() == [49407, 0, 0]


def test_a_first_stage_from_a_file_takes_the_place_of_the_models_own(tiny, tmp_path):
    """Scaled as the model's: a file alone does not say how."""
    path = write("sdxl", tiny, tmp_path)
    config, own = tiny("sdxl").parts["vae"]
    other = tmp_path / "vae.safetensors"
    safetensors_file.save(
        other, to_original(None, {"vae": (config, {key: t / 20 for key, t in own.items()})})
    )
    plain, changed = undust.load(path), undust.load(path, vae=other)
    assert changed.autoencoder.config.scaling_factor == VARIANTS["sdxl"].scaling_factor
    found = changed.autoencoder.state_dict()
    assert all(torch.equal(t / 20, found[key]) for key, t in own.items())
    assert changed.hash == plain.hash
    assert changed.vae is not None
    assert changed.vae.path == str(other)
    with pytest.raises(UndustError, match="is a Stable Diffusion XL; a first stage alone"):
        undust.load(path, vae=path)
