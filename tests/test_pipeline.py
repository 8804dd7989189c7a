"""A whole model: painted, painted again, saved, loaded, and held against diffusers."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import undust
from undust import LatentDiffusion, Picture, Recipe
from undust.diffusion.process import DISCRETE
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError
from undust.formats.recipe_png import read_recipe

PROMPTS = ["a cat", "고양이 🐱", ""]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def noise(count: int = 1) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def pixels(picture: Picture) -> NDArray[np.int32]:
    return np.array(picture.image).astype(np.int32)


def apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest difference of two pictures, in 1/255."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


# --- a picture is a function of its recipe ---------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_of_a_batch_is_the_picture_alone(model: LatentDiffusion, sampler: str):
    together = model.generate(PROMPTS[1:], seed=5, count=2, steps=4, sampler=sampler)
    batch = [(1, 0)] * 4 if SAMPLERS[sampler].adaptive else [(4, place) for place in range(4)]
    assert [(p.recipe.batch, p.recipe.place) for p in together] == batch
    for picture in (together[0], together[3]):  # both prompts, both seeds
        alone = model.generate(
            picture.recipe.prompt, seed=picture.recipe.seed, steps=4, sampler=sampler
        )
        assert apart(pixels(picture), pixels(alone[0])) <= 1


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-ancestral"])
def test_exact_pictures_are_identical_to_those_alone(model: LatentDiffusion, sampler: str):
    together = model.generate(PROMPTS, seed=5, count=2, steps=4, sampler=sampler, exact=True)
    for picture in together:
        (alone,) = model.generate(
            picture.recipe.prompt, seed=picture.recipe.seed, steps=4, sampler=sampler
        )
        assert picture.image.tobytes() == alone.image.tobytes()
        assert picture.recipe == alone.recipe


def test_seeds_prompts_and_counts(model: LatentDiffusion):
    pictures = model.generate(["a cat", "a dog"], seed=7, count=2, steps=1)
    told = [(picture.recipe.prompt, picture.recipe.seed) for picture in pictures]
    assert told == [("a cat", 7), ("a cat", 8), ("a dog", 7), ("a dog", 8)]
    assert len({picture.image.tobytes() for picture in pictures}) == 4
    ends = model.recipes("a cat", seed=2**63 - 1, count=2)
    assert [recipe.seed for recipe in ends] == [2**63 - 1, 0]


def test_without_a_seed_every_picture_is_another(model: LatentDiffusion):
    assert model.recipes("a cat")[0].seed != model.recipes("a cat")[0].seed


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m"])
def test_a_saved_picture_can_be_made_again_to_the_byte(
    model: LatentDiffusion, tmp_path: Path, sampler: str
):
    for picture in model.generate(PROMPTS, seed=3, steps=3, guidance=2.5, sampler=sampler):
        path = picture.save(tmp_path / "picture.png")
        again = model.rerun(Recipe.read(read_recipe(path)))
        assert again.image.tobytes() == picture.image.tobytes()
        assert again.save(tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_another_models_picture_cannot_be_made_again(model: LatentDiffusion):
    (picture,) = model.generate("a cat", seed=1, steps=1)
    other = picture.recipe.model_copy(update={"model": "emoji", "model_hash": "0123456789"})
    with pytest.raises(UndustError, match=r"another model: emoji \(0123456789\), not tiny"):
        model.rerun(other)


def test_given_noise_replaces_the_drawn_one(model: LatentDiffusion):
    first, second = model.generate(["a cat", "a dog"], noise=noise(2), steps=2, seed=1)
    (other,) = model.generate("a cat", noise=noise(2)[0], steps=2, seed=99)
    assert apart(pixels(first), pixels(other)) <= 1
    assert apart(pixels(first), pixels(second)) > 1
    assert first.recipe.given_noise
    with pytest.raises(UndustError, match="made from given noise"):
        model.rerun(first.recipe)
    with pytest.raises(UndustError, match=r"its shape is \[1, 4, 8, 8\].*\[2, 4, 8, 8\]"):
        model.generate(["a cat", "a dog"], noise=noise(1), steps=2)


@pytest.mark.parametrize("given", [noise().numpy(), noise().tolist(), "noise"])
def test_noise_is_a_tensor(model: LatentDiffusion, given: Any):
    with pytest.raises(UndustError, match=f"noise: has to be a tensor, not {type(given).__name__}"):
        model.generate("a cat", noise=given, steps=1)


def test_a_picture_is_saved_as_what_its_name_says(model: LatentDiffusion, tmp_path: Path):
    (picture,) = model.generate("a cat", seed=1, steps=1)
    for name in ("a.gif", "new/a.TIFF"):
        with pytest.raises(UndustError, match=r"a\.(gif|TIFF)"):
            picture.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    for name in ("a.jpg", "a.WEBP", "a.png"):
        path = picture.save(tmp_path / "new" / "folder" / name)
        assert Recipe.read(read_recipe(path)) == picture.recipe
    with pytest.raises(UndustError, match="cannot make the folder"):
        picture.save(path / "b.png")


def test_steps_lead_to_what_generate_gives(model: LatentDiffusion):
    *_, last = shown = list(model.steps(["a cat", "a dog"], seed=1, steps=3))
    assert [(step.index, step.total) for step in shown] == [(k, 3) for k in range(3)]
    assert last.sigma == 0
    assert last.preview().size == (64, 32)
    pictures = model.generate(["a cat", "a dog"], seed=1, steps=3)
    assert torch.equal(last.x, torch.stack([picture.latent for picture in pictures]))


# --- what can be asked for -------------------------------------------------------------------


def test_sizes(model: LatentDiffusion):
    assert model.size == (32, 32)
    assert model.generate("a cat", steps=1)[0].image.size == (32, 32)
    assert model.generate("a cat", steps=1, size=16)[0].image.size == (16, 16)
    assert model.generate("a cat", steps=1, size=(48, 16))[0].image.size == (48, 16)
    assert model.latent_shape(48, 16) == (4, 4, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (33, 32)}, "size: 33x32 is not divisible by 4; 32x32 would be"),
        ({"size": 2}, "size: 2x2 is not divisible by 4; 4x4 would be"),
        ({"size": 0}, "size: 0x0 is not divisible by 4; 4x4 would be"),
        ({"size": -4}, "size: -4x-4"),
        ({"size": 8192}, "size: 8192x8192 is too large"),
        ({"steps": 0}, "steps: "),
        ({"steps": -1}, "steps: "),
        ({"count": 0}, "count: has to be at least 1, not 0"),
        ({"seed": -1}, "seed: "),
        ({"guidance": float("nan")}, "guidance: "),
        ({"sampler": "dpmpp2m"}, "unknown sampler 'dpmpp2m'; did you mean 'dpmpp-2m'"),
        ({"schedule": "karass"}, "unknown schedule 'karass'; did you mean 'karras'"),
    ],
)
def test_what_cannot_be_painted_is_named(
    model: LatentDiffusion, options: dict[str, Any], said: str
):
    with pytest.raises(UndustError, match=said):
        model.generate("a cat", **options)


def test_nothing_to_paint(model: LatentDiffusion):
    with pytest.raises(UndustError, match="no prompt"):
        model.generate([])


# --- files -----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_saved_and_loaded_it_is_the_same_to_the_byte(model: LatentDiffusion, tmp_path: Path):
    model.save(tmp_path / "a")
    loaded = undust.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (loaded.name, loaded.hash) == ("a", model.hash)
    ours, theirs = (m.generate("a cat", seed=1, steps=2)[0] for m in (model, loaded))
    assert ours.image.tobytes() == theirs.image.tobytes()


def test_saving_replaces_and_keeps_the_old_when_it_fails(model: LatentDiffusion, tmp_path: Path):
    model.save(tmp_path / "a")
    model.save(tmp_path / "a")
    before = contents(tmp_path / "a")
    broken = replace(model, prediction="v_prediction")
    broken.prediction = "wavelets"  # found out after the networks are written
    with pytest.raises(UndustError, match="prediction_type = 'wavelets'"):
        broken.save(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_half_precision_in_the_file_and_in_memory(model: LatentDiffusion, tmp_path: Path):
    model.save(tmp_path / "half", torch.float16)
    assert {p.dtype for p in undust.load(tmp_path / "half").unet.parameters()} == {torch.float32}
    half = undust.load(tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    ours, theirs = (m.generate("a cat", seed=1, steps=4)[0] for m in (model, half))
    assert float(np.abs(pixels(ours) - pixels(theirs)).mean()) < 5
    assert half.hash != model.hash


def test_loading_draws_no_random_numbers(tiny_model: Path):
    state = torch.get_rng_state()
    undust.load(tiny_model)
    assert torch.equal(torch.get_rng_state(), state)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def changed(file: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def cut(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-2])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("unet"), "unet"),
        (without("tokenizer"), "tokenizer"),
        (without("scheduler"), r"scheduler_config\.json"),
        (lambda folder: (folder / "model_index.json").unlink(), r"no model_index\.json"),
        (cut("vae/diffusion_pytorch_model.safetensors"), r"vae.*is cut short"),
        (cut("unet/config.json"), r"unet.config\.json is not JSON"),
        (changed("unet/config.json", act_fn="mish"), "act_fn"),
        (changed("unet/config.json", layers_per_block=2), "does not fit its configuration"),
        (changed("text_encoder/config.json", hidden_size=32), "text_encoder"),
        (changed("model_index.json", vae=["diffusers", "AutoencoderDC"]), "AutoencoderDC"),
        (changed("scheduler/scheduler_config.json", prediction_type="flow"), "prediction_type"),
    ],
)
def test_a_spoiled_folder_is_refused_by_name(
    tiny_model: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
):
    folder = tmp_path / "spoiled"
    shutil.copytree(tiny_model, folder)
    spoil(folder)
    with pytest.raises(UndustError, match=said) as error:
        undust.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("fp32", "float32", "torch.float32"), torch.float32),
        (("fp16", "float16", torch.float16), torch.float16),
        (("bf16", "bfloat16"), torch.bfloat16),
    ],
)
def test_precisions_by_name(tiny_model: Path, names: tuple[Any, ...], dtype: torch.dtype):
    assert {undust.load(tiny_model, dtype=name).dtype for name in names} == {dtype}


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int8, 16, "cuda"])
def test_what_is_no_precision(tiny_model: Path, dtype: Any):
    with pytest.raises(UndustError, match=r"dtype: .* is not one of fp32, fp16 and bf16"):
        undust.load(tiny_model, dtype=dtype)


@pytest.mark.parametrize("device", ["vulkan", "gpu", "cuda:99", 1.5, "cpu:x", "meta"])
def test_a_device_that_is_not_there(tiny_model: Path, device: Any):
    with pytest.raises(UndustError, match=f"device: {device} cannot be used here: ") as caught:
        undust.load(tiny_model, device=device)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("live", [False, True])
def test_live_is_now_merge_loras(tiny_model: Path, live: bool):
    with pytest.warns(FutureWarning, match=f"live is now merge_loras={not live}"):
        assert undust.load(tiny_model, live=live).merge_loras is not live


def test_the_first_stage_of_another_model(model: LatentDiffusion, tmp_path: Path):
    """A model's folder is one too: what is in its vae/ is taken."""
    other = replace(model, autoencoder=copy.deepcopy(model.autoencoder))
    for weight in other.autoencoder.parameters():
        weight.data += 0.1
    other.save(tmp_path / "other")
    model.save(tmp_path / "model")
    inside = undust.load(tmp_path / "model", vae=tmp_path / "other" / "vae")
    whole = undust.load(tmp_path / "model", vae=tmp_path / "other")
    assert whole.hash == inside.hash == model.hash
    assert whole.vae == inside.vae
    assert whole.vae is not None
    file = tmp_path / "other/vae/diffusion_pytorch_model.safetensors"
    single = undust.load(tmp_path / "model", vae=file)  # its config.json is beside it
    assert single.vae is not None
    assert single.vae.path == str(file)
    assert single.autoencoder.config == whole.autoencoder.config
    shutil.move(file, file.with_name("other name.safetensors"))
    again = undust.load(tmp_path / "model", vae=file.with_name("other name.safetensors"))
    file.with_name("config.json").unlink()
    with pytest.raises(UndustError, match=r"wants its config\.json beside it"):
        undust.load(tmp_path / "model", vae=again.vae.path if again.vae else "")
    for ours, theirs in zip(
        single.autoencoder.parameters(), again.autoencoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert whole.recipes("a cat")[0].vae == whole.vae
    assert model.recipes("a cat")[0].vae is None
    for ours, theirs in zip(
        whole.autoencoder.parameters(), other.autoencoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_errors_can_be_caught_by_the_name_of_the_package():
    with pytest.raises(undust.UndustError):
        undust.load("emojy")


def test_what_is_no_model(tmp_path: Path):
    with pytest.raises(UndustError, match="unknown model 'emojy'"):
        undust.load("emojy")
    with pytest.raises(UndustError, match="not a model folder"):
        undust.load(tmp_path)


def text_config(**fields: int) -> CLIPTextConfig:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return CLIPTextConfig(
        **{"vocab_size": 600, "num_hidden_layers": 1, "max_position_embeddings": 16, **shape}
        | fields
    )


def test_parts_that_do_not_fit_are_refused(model: LatentDiffusion, tmp_path: Path):
    wide = CLIPTextModel(text_config(hidden_size=32))
    model.save(tmp_path / "a")
    shutil.rmtree(tmp_path / "a/text_encoder")
    wide.save_pretrained(tmp_path / "a/text_encoder")
    with pytest.raises(
        UndustError, match=r"text encoders' width is 32 and the denoiser takes text of width 16"
    ):
        undust.load(tmp_path / "a")


# --- against diffusers and transformers ------------------------------------------------------


def theirs(pipe: StableDiffusionPipeline, prompt: str, start: Tensor, **options: Any) -> Any:
    """diffusers' picture in 1/255."""
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(prompt, latents=start.clone(), output_type="np", **options).images
    return pictures[0] * 255


# Every prediction with every process, and each of both without guidance and with it.
PAINTED = [
    (prediction, process, (1.0, 4.0)[(row + column) % 2])
    for row, prediction in enumerate(("epsilon", "v_prediction", "sample"))
    for column, process in enumerate(DISCRETE)
]


@pytest.mark.parametrize(("prediction", "process", "guidance"), PAINTED)
def test_diffusers_opens_what_is_saved_and_paints_the_same(
    model: LatentDiffusion, tmp_path: Path, prediction: str, process: str, guidance: float
):
    replace(model, prediction=prediction, process=DISCRETE[process]()).save(tmp_path / "a")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "a")
    reference = theirs(
        pipe, "고양이 a dog", noise(), num_inference_steps=5, guidance_scale=guidance
    )
    (ours,) = undust.load(tmp_path / "a").generate(
        "고양이 a dog",
        noise=noise(),
        steps=5,
        guidance=guidance,
        sampler="ddim",
        schedule="leading",
    )
    assert apart(pixels(ours), reference) <= 2


def test_the_negative_prompt_means_the_same(model: LatentDiffusion, tiny_model: Path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    options = {"num_inference_steps": 5, "guidance_scale": 4.0, "negative_prompt": "a dog"}
    reference = theirs(pipe, "a cat", noise(), **options)
    settings = {"steps": 5, "guidance": 4.0, "sampler": "ddim", "schedule": "leading"}
    (ours,) = model.generate("a cat", negative="a dog", noise=noise(), **settings)
    (other,) = model.generate("a cat", noise=noise(), **settings)
    assert apart(pixels(ours), reference) <= 2
    assert apart(pixels(other), reference) > 2


def test_guides_paint_what_diffusers_paints(model: LatentDiffusion, tiny_model: Path):
    """Rescaled guidance on ε, and perturbed attention in the middle block; strong, because what a
    prompt changes in untrained weights is faint. Their latents, in the same coordinates."""
    settings: dict[str, Any] = {"steps": 5, "sampler": "ddim", "schedule": "leading"}
    (plain,) = model.generate("a cat", noise=noise(), guidance=20.0, **settings)
    for guide, kind, more in [
        ("rescale:share=1,output=epsilon", StableDiffusionPipeline, {"guidance_rescale": 1.0}),
        ("pag:scale=50", StableDiffusionPAGPipeline, {"pag_scale": 50.0}),
    ]:
        pipe = kind.from_pretrained(tiny_model)
        pipe.set_progress_bar_config(disable=True)
        reference = pipe(
            "a cat",
            latents=noise(),
            num_inference_steps=5,
            guidance_scale=20.0,
            output_type="latent",
            **more,
        ).images[0]
        (ours,) = model.generate("a cat", noise=noise(), guidance=20.0, guides=[guide], **settings)
        assert (ours.latent - reference).norm() < 1e-4 * reference.norm()
        assert (plain.latent - reference).norm() > 1e-2 * reference.norm()


def test_neutral_guides_change_no_byte_of_a_picture(model: LatentDiffusion):
    guides = ["apg:eta=1,momentum=0", "pag:scale=0", "seg:scale=0", "interval", "rescale:share=0"]
    plain = model.generate(["a cat", "a dog"], seed=1, steps=2)
    guided = model.generate(["a cat", "a dog"], seed=1, steps=2, guides=guides)
    for ours, other in zip(plain, guided, strict=True):
        assert ours.image.tobytes() == other.image.tobytes()
        assert torch.equal(ours.latent, other.latent)


def test_a_folder_that_diffusers_saved_paints_the_same_here(tiny_model: Path, tmp_path: Path):
    """Networks, configurations and scheduler of theirs, with Stable Diffusion 1.5's PNDM file."""
    torch.manual_seed(3)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    levels = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **levels,
        ),
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            **levels,
        ),
        text_encoder=CLIPTextModel(text_config(vocab_size=len(tokenizer))),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            1000, 0.00085, 0.012, "scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "theirs")
    model = undust.load(tmp_path / "theirs")
    assert model.size == (16, 16)
    (ours,) = model.generate(
        "a cat", noise=noise(), steps=5, guidance=3, sampler="ddim", schedule="leading"
    )
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "theirs")
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, set_alpha_to_one=True
    )
    reference = theirs(pipe, "a cat", noise(), num_inference_steps=5, guidance_scale=3.0)
    assert apart(pixels(ours), reference) <= 2


@torch.no_grad()
def test_prompts_become_what_transformers_makes_of_them(model: LatentDiffusion, tiny_model: Path):
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(tiny_model / "text_encoder")
    prompts = [*PROMPTS, "a dog, a dog"]
    ids = tokenizer(
        prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    ).input_ids
    expected = encoder(ids).last_hidden_state
    torch.testing.assert_close(model.condition(prompts).text, expected, rtol=1e-5, atol=1e-5)
