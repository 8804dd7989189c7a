"""Folders as they are found, and what diffusers makes of them: older ones, and learnt words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import undust
from undust.conditioning.clip import clip
from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.formats.safetensors_file import load as load_tensors
from undust.formats.safetensors_file import save as save_tensors
from undust.formats.single_file import tensors
from undust.networks.config import TextEncoderConfig
from variants import build, short_clip

TABLE = "text_model.embeddings.token_embedding.weight"
PIPELINES = {"text_encoder": ("tokenizer", 32), "text_encoder_2": ("tokenizer_2", 64)}
Words = Callable[[str], Tokenizer]
Found = Callable[..., Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("found")

    @cache
    def write(variant: str, tokenizer: Words = short_clip) -> Path:
        folder = root / f"{variant}-{tokenizer.__name__}"
        build(variant, tokenizer).save(folder)
        return folder

    return write


@pytest.fixture
def found(written: Found, tmp_path: Path) -> Found:
    """A variant's folder, to be changed."""
    return lambda variant, tokenizer=short_clip: Path(
        shutil.copytree(written(variant, tokenizer), tmp_path / variant)
    )


def change(path: Path, **fields: object) -> None:
    content = (json.loads(path.read_text()) if path.exists() else {}) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "-"}))


def pipeline(folder: Path) -> Any:
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    spare = {"safety_checker": None} if name == "StableDiffusionPipeline" else {}
    pipe = getattr(diffusers, name).from_pretrained(folder, **spare)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


# TextConditioner that were learnt


def taught_by_diffusers(folder: Path) -> None:
    """Three vectors for one word, and one for another."""
    pipe = pipeline(folder)
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in PIPELINES if (folder / name).is_dir()]:
        tokens, width = PIPELINES[name]
        for word, count in (("<cat-toy>", 3), ("<Style>", 1)):
            pipe.load_textual_inversion(
                {word: 3 * torch.randn(count, width, generator=generator)},
                tokenizer=getattr(pipe, tokens),
                text_encoder=getattr(pipe, name),
            )
    pipe.save_pretrained(folder)


def taught_as_once(folder: Path) -> None:
    """One vector, and a file of added words beside the vocabulary."""
    path = folder / "text_encoder/model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_tensors(path).items()}
    further = 3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    weights[TABLE] = torch.cat([weights[TABLE], further])
    save_tensors(path, weights)
    change(folder / "text_encoder/config.json", vocab_size=49410)
    words = {"<cat-toy>": 49408, "<Style>": 49409}
    change(folder / "tokenizer/added_tokens.json", **words)


@torch.no_grad()
@pytest.mark.parametrize("teach", [taught_by_diffusers, taught_as_once])
def test_learnt_words_are_read_written_and_weighed(
    found: Found, teach: Callable[[Path], None], tmp_path: Path
):
    folder = found("sd1", clip)
    teach(folder)
    model, pipe = undust.load(folder), pipeline(folder)
    prompt = "a <cat-toy> house, <Style>"
    theirs = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    ours = model.condition([prompt]).text
    assert apart(ours, theirs) < 1e-5
    assert apart(model.condition(["a cat toy house, style"]).text, theirs) > 0.1
    assert model.guidance == 7.5  # as CLIP's vocabulary has it

    start = torch.randn(1, *model.latent_shape(64, 64), generator=torch.manual_seed(0))
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    expected = pipe(prompt, latents=start, height=64, width=64, **asked).images
    (painted,) = model.generate(
        prompt, noise=start, size=64, steps=2, guidance=3, sampler="ddim", schedule="leading"
    )
    assert apart(painted.latent[None], expected) < 1e-4

    # Inside emphasis the word is whole, and nothing but the word is weighed.
    weighed = model.condition(["a (<cat-toy>:1.5) house, [<Style>]"]).text
    ends = [0, 1, *range(8, 77)] if teach is taught_by_diffusers else [0, 1, *range(6, 77)]
    assert torch.equal(weighed[:, ends], ours[:, ends])
    assert not torch.equal(weighed[:, 2], ours[:, 2])

    model.save(tmp_path / "again")
    again = undust.load(tmp_path / "again")
    assert torch.equal(again.condition([prompt]).text, ours)
    assert (
        apart(pipeline(tmp_path / "again").encode_prompt(prompt, "cpu", 1, False)[0], ours) < 1e-5
    )


@torch.no_grad()
def test_a_learnt_word_is_not_taken_for_the_end(found: Found, tmp_path: Path):
    """transformers takes the largest number for the end where a configuration says end 2."""
    folder = found("sdxl", clip)
    taught_by_diffusers(folder)
    prompt = "a <cat-toy> house"
    change(folder / "text_encoder_2/config.json", eos_token_id=49407)
    expected = pipeline(folder).encode_prompt(prompt, device="cpu")[2]
    for end in (49407, 2):
        change(folder / "text_encoder_2/config.json", eos_token_id=end)
        model = undust.load(folder)
        pooled = model.condition([prompt]).pooled
        assert pooled is not None
        assert apart(pooled, expected) < 1e-5
        model.save(tmp_path / "again")
        again = pipeline(tmp_path / "again").encode_prompt(prompt, device="cpu")[2]
        assert apart(again, expected) < 1e-5


def test_learnt_words_have_no_place_in_a_single_file(found: Found):
    folder = found("sd1", clip)
    taught_as_once(folder)
    with pytest.raises(UndustError, match="cannot store: <cat-toy>, <Style>"):
        tensors(undust.load(folder))


def test_a_learnt_word_without_a_vector_is_refused(found: Found):
    folder = found("sd1", clip)
    change(folder / "tokenizer/added_tokens.json", **{"<cat-toy>": 49408})
    with pytest.raises(UndustError, match="tokenizer does not fit: it has the id 49408"):
        undust.load(folder)


# What diffusers corrects


@pytest.mark.parametrize(
    ("version", "size"),
    [
        ("0.6.0", 32),
        ("0.8.1", 16),
        ("0.8.0.dev0", 32),
        ("0.6.0", 64),
        ("0.6.0", 96),
        ("0.6.0", [32, 16]),
        ("0.9.0.dev0", 32),
        ("0.10.2", 32),
        ("0.42.0", 32),
        ("-", 32),
    ],
)
def test_the_size_of_old_models(found: Found, version: str, size: int | list[int]):
    folder = found("sd1")
    change(folder / "unet/config.json", _diffusers_version=version, sample_size=size)
    theirs, model = pipeline(folder).unet.config.sample_size, undust.load(folder)
    height, width = (theirs, theirs) if isinstance(theirs, int) else theirs
    assert model.size == (width * model.downsampling_factor, height * model.downsampling_factor)


@pytest.mark.parametrize("scale", ["-", 0.18215, 0.08333])
def test_the_scale_of_an_upscalers_latents(found: Found, scale: str | float):
    folder = found("x4-upscaler")
    change(folder / "vae/config.json", scaling_factor=scale)
    model = undust.load(folder)
    assert model.autoencoder.config.scaling_factor == pipeline(folder).vae.config.scaling_factor


# What few models have


@torch.no_grad()
def test_latents_of_which_each_channel_has_its_scale(found: Found, written: Found, tmp_path: Path):
    """As Playground v2.5's first stage has it."""
    folder = found("sdxl")
    told = {"latents_mean": [-1.7, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2]}
    change(folder / "vae/config.json", scaling_factor=0.5, **told)
    model, pipe = undust.load(folder), pipeline(folder)
    latent = torch.randn(1, *model.latent_shape(32, 32), generator=torch.manual_seed(0))
    start = {"latents": latent, "height": 32, "width": 32, "num_inference_steps": 1}
    painted = pipe("a cat", **start, guidance_scale=2.0, output_type="latent").images
    theirs = pipe("a cat", **start, guidance_scale=2.0, output_type="pt").images
    assert apart(model.decode(painted).clamp(-1, 1) / 2 + 0.5, theirs) < 1e-5
    picture = torch.rand(1, 3, 32, 32, generator=torch.manual_seed(1)) * 2 - 1
    again = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    torch.manual_seed(0)
    drawn = again.prepare_latents(picture, None, 1, 1, torch.float32, "cpu", None, False)
    torch.manual_seed(0)
    moments = model.autoencoder.encode(picture)
    noise = torch.randn_like(moments.mean) * (0.5 * moments.logvar).exp()
    scale, _ = model.autoencoder.scale(noise)
    assert apart(model.encode(picture) + noise * scale, drawn) < 1e-5

    model.save(tmp_path / "again")
    assert undust.load(tmp_path / "again").autoencoder.config == model.autoencoder.config
    with pytest.raises(UndustError, match="first stage of other latents"):
        undust.load(folder, vae=written("sdxl") / "vae")


# What plays no part


@torch.no_grad()
@pytest.mark.parametrize("size", [None, 64, [64, 32]])
def test_sizes_of_first_stages(found: Found, size: object, tmp_path: Path):
    """That none is said is nothing that diffusers could open: written is its default."""
    folder = found("sd1")
    change(folder / "vae/config.json", sample_size=size)
    model = undust.load(folder)
    model.save(tmp_path / "again")
    latent = torch.randn(1, *model.latent_shape(32, 32), generator=torch.manual_seed(0))
    for place in (folder,) * (size is not None) + (tmp_path / "again",):
        theirs = pipeline(place).vae
        assert theirs.config.sample_size == (size or 32)
        assert (
            apart(model.decode(latent), theirs.decode(latent / theirs.config.scaling_factor)[0])
            < 1e-5
        )


EMA = {
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 15000,
    "power": 0.6667,
    "update_after_step": 0,
    "use_ema_warmup": False,
}


def test_what_a_moving_average_leaves(found: Found):
    folder = found("sd1")
    change(folder / "unet/config.json", **EMA)
    undust.load(folder)


@torch.no_grad()
def test_the_class_of_a_text_encoder_is_in_the_index(found: Found, written: Found):
    """As in diffusers: a configuration alone would take another."""
    folder = found("sdxl")
    expected = undust.load(written("sdxl")).condition(["a cat"])
    for said in ("-", ["CLIPTextModel"]):
        for name in ("text_encoder", "text_encoder_2"):
            change(folder / name / "config.json", architectures=said)
        told = undust.load(folder).condition(["a cat"])
        assert torch.equal(told.text, expected.text)
        assert told.pooled is not None and expected.pooled is not None
        assert torch.equal(told.pooled, expected.pooled)
    assert apart(pipeline(folder).encode_prompt("a cat", device="cpu")[2], expected.pooled) < 1e-5


@torch.no_grad()
def test_what_old_configurations_say_plays_no_part(found: Found):
    """Not in transformers either, whatever it says, but for heads that are left out."""
    folder = found("sd1")
    expected = undust.load(folder).condition(["a cat"]).text
    own = {"architectures", "model_type", "vocab_size", *TextEncoderConfig.model_fields}
    odd = {
        name: "float64" if "dtype" in name else {"0": "a"} if name.endswith("label2id") else True
        for name in TextEncoderConfig.housekeeping - own
    }
    untouched = ("id2label", "label2id", "problem_type", "dtype", "torch_dtype", "return_dict")
    odd = {name: value for name, value in odd.items() if name not in untouched}
    change(folder / "text_encoder/config.json", **odd, pruned_heads={})
    assert torch.equal(undust.load(folder).condition(["a cat"]).text, expected)
    theirs = pipeline(folder).encode_prompt("a cat", "cpu", 1, False)[0]
    assert apart(expected, theirs) < 1e-5
    change(folder / "text_encoder/config.json", pruned_heads={"0": [1]})
    with pytest.raises(UndustError, match="pruned_heads"):
        undust.load(folder)


def test_another_default_size_is_told_of(found: Found):
    folder = found("sd1", clip)
    for size, told in ((128, False), ([128, 128], False), (32, True), ([128, 64], True)):
        change(folder / "unet/config.json", sample_size=size)
        model = undust.load(folder)
        _, notes = tensors(model)
        assert any("pictures of 512x512" in note for note in notes) is told
