"""What a training run publishes opens in diffusers and transformers, in each precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

import undust
from undust.formats.components import load_first_stage
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.run import train

PROMPT = "녹"  # no longer than the text encoder reads at once
# Mean difference of two pictures, of 255; rounding to bytes alone makes 0.25.
APART = {"fp32": 0.3, "fp16": 0.8, "bf16": 2.5}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def test_a_first_stage(first_stage_recipe: Callable[..., FirstStageConfig], tmp_path: Path):
    train(first_stage_recipe("run.steps=2"), tmp_path)
    ours = load_first_stage(tmp_path / "model")
    chance = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 16, 16, generator=chance) * 2 - 1
    plain = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        mean = ours.encode(pictures).mean
        torch.testing.assert_close(plain.encode(pictures).latent_dist.mean, mean)
        torch.testing.assert_close(plain.decode(mean).sample, ours.decode(mean))
    for dtype in DTYPES.values():
        half = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model", torch_dtype=dtype)
        for name, tensor in ours.state_dict().items():
            assert torch.equal(half.state_dict()[name], tensor.to(dtype)), name


@pytest.mark.parametrize("process", ["scaled-linear", "flow", "edm"])
def test_a_model(process: str, diffusion_recipe: Callable[..., DiffusionConfig], tmp_path: Path):
    """Its words, and its pictures in each precision; a flow's within 2 %, as its levels are."""
    recipe = diffusion_recipe(f"diffusion.process={process}", "run.steps=2")
    train(recipe, tmp_path)
    folder = tmp_path / "model"
    model = undust.load(folder)
    (words,) = model.texts
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    padded: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    tokens = tokenizer([PROMPT, ""], **padded).input_ids
    for kind in (transformers.AutoModel, transformers.CLIPTextModel):
        encoder = kind.from_pretrained(folder / "text_encoder")
        with torch.no_grad():
            states = encoder(tokens).last_hidden_state
            torch.testing.assert_close(states, words([PROMPT, ""], 0)[0])

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}
    like: dict[str, Any] = {"steps": 3, "guidance": 4}
    like |= {"sampler": "ddim", "schedule": "leading"} if process == "scaled-linear" else {}
    like |= {} if process == "scaled-linear" else {"sampler": "euler"}
    for precision, dtype in DTYPES.items():
        chosen = {} if precision == "fp32" else {"torch_dtype": dtype}
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, **chosen)
        pipe.set_progress_bar_config(disable=True)
        theirs = pipe(PROMPT, latents=noise.to(dtype), **asked).images[0] * 255
        (picture,) = undust.load(folder, dtype=precision).generate(PROMPT, noise=noise, **like)
        apart = np.abs(np.asarray(picture.image, float) - theirs)
        assert apart.mean() <= APART[precision]
