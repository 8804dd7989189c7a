"""Folders that are written open elsewhere by the plain call, in any precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

import undust
from undust.diffusion.noise import BESIDE, normal
from undust.diffusion.process import EDM, Flow
from undust.formats import convert, model_folder
from undust.formats.folder import read_json
from undust.formats.original.variants import VARIANTS
from undust.networks.config import ControlNetConfig
from undust.networks.controlnet import ControlNet
from undust.pipeline import LatentDiffusion
from variants import build

SIZE = 32
QUARTER = SIZE // 4
PROMPT = "a cat, oil painting"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Mean difference of two pictures in half precision, of 255: 0.23 to 0.30, and 0.5 to 1.6, as
# measured. Rounding to bytes alone makes 0.25, and 0.5 at most.
APART = {"fp16": 0.8, "bf16": 2.5}
# What a pipeline is asked for -> the precision that it works in.
CALLS: list[tuple[dict[str, torch.dtype], torch.dtype]] = [
    ({}, torch.float32),
    *(({"torch_dtype": dtype}, dtype) for dtype in PRECISIONS.values()),
    ({"dtype": torch.float16}, torch.float16),
]
Written = Callable[[str, str], Path]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    for library in (diffusers, transformers):
        library.logging.disable_progress_bar()
    yield
    for library in (diffusers, transformers):
        library.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The folder of a variant, its weights in a precision."""
    root = tmp_path_factory.mktemp("written")
    model = cache(build)

    @cache
    def write(variant: str, precision: str) -> Path:
        folder = root / f"{variant}-{precision}"
        convert.write_model(model(variant), folder, "folder", PRECISIONS[precision])
        return folder

    return write


def pipeline(folder: Path, **asked: Any) -> Any:
    """The class that model_index.json names, as anybody would load it."""
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    found = kind.from_pretrained(folder, **asked)
    found.set_progress_bar_config(disable=True)
    return found


def precisions(pipe: Any) -> set[torch.dtype]:
    networks = (part for part in pipe.components.values() if isinstance(part, nn.Module))
    return {value.dtype for network in networks for value in network.parameters()}


@pytest.mark.parametrize(("asked", "expected"), CALLS)
@pytest.mark.parametrize("stored", PRECISIONS)
def test_all_networks_are_in_the_precision_asked_for(
    written: Written, stored: str, asked: dict[str, torch.dtype], expected: torch.dtype
):
    """Of sdxl: it has both text encoders, one of them with a projection."""
    assert precisions(pipeline(written("sdxl", stored), **asked)) == {expected}


# Each variant in two of the precisions, and each precision with two of three variants.
STORED = [
    (variant, stored)
    for row, variant in enumerate(VARIANTS)
    for column, stored in enumerate(PRECISIONS)
    if row % len(PRECISIONS) != column
]


@pytest.mark.parametrize(("variant", "stored"), STORED)
def test_every_variant_paints_the_same(written: Written, variant: str, stored: str):
    """By the plain call, in float32, and in the half precision that it is stored in."""
    folder = written(variant, stored)
    pipe = pipeline(folder)
    assert precisions(pipe) == {torch.float32}
    ours, theirs = paint(variant, undust.load(folder), pipe)
    assert np.abs(ours - theirs).max() < 0.75
    if stored in APART:
        pipe = pipeline(folder, torch_dtype=PRECISIONS[stored])
        ours, theirs = paint(variant, undust.load(folder, dtype=stored), pipe)
        assert np.abs(ours - theirs).mean() <= APART[stored]


def paint(variant: str, model: LatentDiffusion, pipe: Any) -> tuple[np.ndarray, np.ndarray]:
    """A picture of the model's and of the pipeline's from the same noise, both 0 to 255."""
    noise = torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(0))
    asked: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "np",
    }
    ours: dict[str, Any] = {"steps": 2, "guidance": 3, "sampler": "ddim", "schedule": "leading"}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    start = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if variant == "x4-upscaler":
        small = start.resize((QUARTER, QUARTER))
        # What undust draws for the small picture is given to the pipeline as its generator's.
        drawn = normal(5, (BESIDE, 0, 0), (3, QUARTER, QUARTER))[None]
        plain = pipe.low_res_scheduler.add_noise
        pipe.low_res_scheduler.add_noise = lambda image, _, level: plain(
            image, drawn.to(image), level
        )
        asked |= {"image": small, "latents": noise, "noise_level": 20}
        ours |= {"init": small, "seed": 5}
    elif variant == "sdxl-refiner":
        latent = model.encode(as_tensor(start, model))
        generator = torch.manual_seed(7)
        noise = torch.randn(latent.shape, generator=generator, dtype=model.dtype).float()
        told = {"original_size": (SIZE, SIZE), "target_size": (SIZE, SIZE)}
        asked |= {"image": latent, "strength": 0.8, "generator": torch.manual_seed(7), **told}
        asked |= {"num_inference_steps": 4}
        asked |= {f"negative_{name}": size for name, size in told.items()}
        ours |= {"init": start, "strength": 0.8, "steps": 4}
    elif "inpainting" in variant:
        hole = np.zeros((SIZE, SIZE), np.uint8)
        hole[QUARTER : 3 * QUARTER, QUARTER:] = 255
        unknown = torch.tensor(hole)[None, None].float() / 255
        picture = as_tensor(start, model)
        asked |= {
            "image": model.encode(picture),
            "mask_image": unknown,
            "masked_image_latents": model.encode(picture * (unknown < 0.5).to(picture)),
            "latents": noise,
            "strength": 1.0,
            "height": SIZE,
            "width": SIZE,
        }
        ours |= {"init": start, "mask": Image.fromarray(hole), "strength": 1.0}
    else:
        asked |= {"latents": noise, "height": SIZE, "width": SIZE}
        ours |= {"size": SIZE}
    for name in ("latents", "image", "masked_image_latents"):
        if isinstance(asked.get(name), Tensor):
            asked[name] = asked[name].to(model.dtype)
    theirs = pipe(PROMPT, **asked).images[0] * 255
    (picture,) = model.generate(PROMPT, noise=noise, **ours)
    found = np.asarray(picture.image, float)
    if "inpainting" in variant:  # what is not masked comes back from the file itself
        inside = slice(QUARTER, 3 * QUARTER), slice(QUARTER, None)
        found, theirs = found[inside], theirs[inside]
    return found, theirs


def as_tensor(image: Image.Image, model: LatentDiffusion) -> Tensor:
    pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return pixels.to(model.dtype)


@pytest.mark.parametrize("stored", PRECISIONS)
def test_networks_alone_open_by_the_plain_call(written: Written, tmp_path: Path, stored: str):
    """A text encoder, a first stage and a ControlNet, each with the weights that were written."""
    model = build("sdxl")
    control = ControlNet(ControlNetConfig.of(model.unet.config))
    alone: dict[type, tuple[nn.Module, Path]] = {
        diffusers.ControlNetModel: (control, tmp_path / "control"),
        diffusers.AutoencoderKL: (model.autoencoder, tmp_path / "first stage"),
    }
    for network, folder in alone.values():
        convert.write_model(network, folder, "folder", PRECISIONS[stored])  # pyright: ignore
    folder = written("sdxl", stored)
    alone[transformers.CLIPTextModel] = (model.texts[0].encoder, folder / "text_encoder")
    alone[transformers.CLIPTextModelWithProjection] = (
        model.texts[1].encoder,
        folder / "text_encoder_2",
    )
    for kind, (network, place) in alone.items():
        for asked, expected in CALLS:
            loaded = kind.from_pretrained(place, **asked)  # pyright: ignore
            theirs = loaded.state_dict()
            assert {value.dtype for value in theirs.values()} == {expected}
            for name, value in network.state_dict().items():
                if name not in theirs:  # transformers 5 leaves this prefix off
                    name = name.removeprefix("text_model.")
                assert torch.equal(theirs[name], value.to(PRECISIONS[stored]).to(expected)), name


@pytest.mark.parametrize("stored", ["fp16"])
def test_a_controlnet_paints_the_same(written: Written, tmp_path: Path, stored: str):
    """Beside a model of the same precision, by the plain call and in that precision."""
    folder = written("sd1", stored)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = ControlNetConfig.of(undust.load(folder).unet.config)
        channels = {"conditioning_embedding_out_channels": (8, 16, 16)}  # 4 times smaller
        network = ControlNet(config.model_copy(update=channels))
        for parameter in network.parameters():  # a fresh one adds nothing
            parameter.data += 0.05 * torch.randn_like(parameter)
    convert.write_model(network, tmp_path / "control", "folder", PRECISIONS[stored])
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    shown = Image.fromarray(pixels)
    shown.save(tmp_path / "shown.png")
    asked: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    like = {"size": SIZE, "steps": 2, "guidance": 3, "sampler": "ddim", "schedule": "leading"}
    for precision in {"fp32", stored}:
        chosen = {} if precision == "fp32" else {"torch_dtype": PRECISIONS[precision]}
        pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
            folder,
            controlnet=diffusers.ControlNetModel.from_pretrained(tmp_path / "control", **chosen),
            **chosen,
        )
        pipe.set_progress_bar_config(disable=True)
        model = undust.load(folder, dtype=precision)
        noise = torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(0))
        theirs = pipe(PROMPT, image=shown, latents=noise.to(model.dtype), **asked).images[0] * 255
        (found, plain) = (
            np.asarray(model.generate(PROMPT, noise=noise, **like, **control)[0].image, float)
            for control in ({"controls": [f"{tmp_path / 'control'}={tmp_path / 'shown.png'}"]}, {})
        )
        assert np.abs(found - theirs).mean() <= APART.get(precision, 0.3)
        assert np.abs(found - plain).mean() > 5


@pytest.mark.parametrize(
    ("process", "prediction", "sampler", "schedule"),
    [
        (Flow(3.0), "flow", "euler", "trailing"),
        (EDM(0.004, 160.0, 1.0), "edm", "euler", "karras"),
    ],
)
def test_other_processes_open_in_the_same_pipeline(
    tmp_path: Path, process: Flow | EDM, prediction: str, sampler: str, schedule: str
):
    """A flow's pictures differ by up to 2 %, which the next test explains."""
    model = build("sd1")
    model.process, model.prediction = process, prediction
    model_folder.write(model, tmp_path / "model")
    model = undust.load(tmp_path / "model")
    assert (model.process, model.prediction) == (process, prediction)
    noise = torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(0))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 8, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe(PROMPT, latents=noise, height=SIZE, width=SIZE, **asked).images[0]
    (picture,) = model.generate(
        PROMPT, noise=noise, size=SIZE, steps=8, guidance=3, sampler=sampler, schedule=schedule
    )
    assert float((picture.latent - theirs).norm() / theirs.norm()) < 0.02


def test_a_flow_is_the_same_but_for_its_levels(tmp_path: Path):
    """No scheduler of diffusers that these pipelines can use has the exact levels.

    Their levels begin at 1 − 1/T, the latent there is noise alone, and the network is told whole
    time steps. Here undust is given their levels and that latent, and the network the time steps
    before they are cut.
    """
    model = build("sd1")
    model.process, model.prediction = Flow(3.0), "flow"
    model_folder.write(model, tmp_path / "model")
    model = undust.load(tmp_path / "model")
    noise = torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(0))
    pipe = pipeline(tmp_path / "model")
    cut = pipe.scheduler.set_timesteps

    def uncut(*given: Any, **named: Any) -> None:
        cut(*given, **named)
        pipe.scheduler.timesteps = pipe.scheduler.sigmas[:-1].double() * 1000

    pipe.scheduler.set_timesteps = uncut
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe(PROMPT, latents=noise, height=SIZE, width=SIZE, **asked).images[0]
    taus = pipe.scheduler.sigmas[:-1].double()
    levels = ",".join(str(sigma) for sigma in (taus / (1 - taus)).tolist())
    (picture,) = model.generate(
        PROMPT,
        noise=noise / float(taus[0]),
        size=SIZE,
        guidance=3,
        sampler="euler",
        schedule=levels,
    )
    assert float((picture.latent - theirs).norm() / theirs.norm()) < 1e-4
