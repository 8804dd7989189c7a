"""What the calls are made with: models, LoRAs, ControlNets, pictures and data, always the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.families import dora, draw, full_with_bias, loha, lokr, lora, lora_mid, norm
from recording.calls import VARIANTS, write_control, write_model
from recording.hashes import sha

PROMPT = "a cat, oil painting"
SIDE = 32
FAMILIES = {
    "lora": lora,
    "lora-mid": lora_mid,
    "loha": loha,
    "lokr": lokr,
    "full": full_with_bias,
    "dora": dora,
    "norm": norm,
}
BETA = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
ZERO = {"rescale_betas_zero_snr": True}
FLOW, EDM = {"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"_class_name": "EDMEulerScheduler"}
PROCESSES = {
    **{f"vp-{kind}": {**BETA, "prediction_type": kind} for kind in ("epsilon", "sample")},
    "vp-v": {**BETA, "prediction_type": "v_prediction"},
    "cosine-v": {**BETA, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    **{
        f"zero-snr-{kind}": {**BETA, **ZERO, "prediction_type": kind}
        for kind in ("sample", "v_prediction")
    },
    "flow": FLOW,
    "flow-shifted": {**FLOW, "shift": 3.0},
    "edm": {**EDM, "prediction_type": "epsilon"},
    "edm-v": {**EDM, "prediction_type": "v_prediction", "sigma_data": 1.0},
}
TRAIN_FIRST_STAGE = """
kind = "first-stage"
data = { folder = "data", size = 16, crop = 8 }
autoencoder = { block_out_channels = [8, 8], norm_num_groups = 4 }
optimizer = { learning_rate = 1e-3, warm_up = 2, cool_down = 0.2 }
run = { steps = 20, batch = 4, ema = 0.9, muon_precision = "fp32" }
"""
TRAIN_DIFFUSION = """
kind = "diffusion"
first_stage = "models/sd1/vae"
data = { folder = "data", size = 16 }
optimizer = { learning_rate = 1e-3, warm_up = 2, cool_down = 0.2 }
run = { steps = 20, batch = 2, ema = 0.9, muon_precision = "fp32" }
captions = { vocabulary = 600, length = 8 }
[text_encoder]
hidden_size = 8
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
[unet]
sample_size = 4
block_out_channels = [8]
down_block_types = ["CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 8
attention_head_dim = 2
norm_num_groups = 4
"""


def prepare() -> None:
    """Writes the models, pictures and data into the working folder."""
    for name, side in (("start", SIDE), ("small", SIDE // 4), ("hint-0", SIDE), ("hint-1", SIDE)):
        noise(name, side).save(f"{name}.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:20, 9:27] = 255
    Image.fromarray(mask).save("mask.png")
    hole = noise("start", SIDE).convert("RGBA")
    hole.putalpha(Image.fromarray(255 - mask))
    hole.save("hole.png")
    for folder in ("controls", "data", "loras", "models", "weak"):
        Path(folder).mkdir()
    for number in range(8):
        noise(f"data-{number}", 16).save(f"data/{number}.png")
        Path(f"data/{number}.txt").write_text(f"number {number} of the pictures, 그림")
    for variant in VARIANTS:
        for folder in (f"models/{variant}", f"weak/{variant}"):
            write_model(variant, Path(folder))
            fill(folder)
        weights = load_file(next(Path(f"models/{variant}/unet").glob("*.safetensors")))
        for kind, family in FAMILIES.items():
            save_file(changes(family, weights), f"loras/{variant}-{kind}.safetensors")
        save_file(diffusers_lora(variant), f"loras/{variant}-diffusers.safetensors")
        words = {"clip_l": draw(1)(2, 32), "clip_g": draw(2)(2, 64)}
        if variant.startswith(("sd2", "x4")):
            words = {"emb_params": words["clip_g"]}
        save_file(words, f"loras/{variant}-word.safetensors")
        if "inpainting" not in variant and variant != "x4-upscaler":
            for number in range(2):
                write_control(variant, Path(f"controls/{variant}-{number}"))
                fill(f"controls/{variant}-{number}")
    for name, scheduler in PROCESSES.items():
        shutil.copytree("models/sd1", f"models/{name}")
        Path(f"models/{name}/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))


def noise(name: str, side: int) -> Image.Image:
    """A picture with shapes in it."""
    small = torch.randint(0, 256, (8, 8, 3), generator=seeded(name), dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((side, side), Image.Resampling.BICUBIC)


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(sha(name.encode())[:15], 16))


def fill(folder: str) -> None:
    """Weights that depend on their file, name and shape alone, in whatever order they are made."""
    for path in Path(folder).rglob("*.safetensors"):
        tensors = load_file(path)
        for key, tensor in tensors.items():
            drawn = torch.randn(tensor.shape, generator=seeded(f"{path}:{key}"))
            table, norms = "embedding" in key, tensor.ndim == 1 and key.endswith("weight")
            scale = 0.1 if tensor.ndim < 2 or table else tensor[0].numel() ** -0.5
            if tensor.is_floating_point():
                tensors[key] = (scale * drawn + norms).to(tensor.dtype)
        save_file(tensors, path, {"format": "pt"})


def changes(family: Callable[..., Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA of that family for those modules of a U-Net whose shapes suit it."""
    made: dict[str, Tensor] = {}
    wanted = ("norm1",) if family is norm else ("to_q", "proj_in", "conv1", "net.2")
    for number, (key, weight) in enumerate(sorted(weights.items())):
        name, _, kind = key.rpartition(".")
        if kind != "weight" or not any(f".{part}." in key for part in wanted):
            continue
        if family is full_with_bias and f"{name}.bias" not in weights:
            continue
        if family is lokr and weight.shape[1] % 3:
            continue
        tensors = family(tuple(weight.shape), draw(number)).tensors
        flat = f"lora_unet_{name.replace('.', '_')}"
        made |= {flat + end: tensor.contiguous() for end, tensor in tensors.items()}
    return made


def diffusers_lora(variant: str) -> dict[str, Tensor]:
    """A LoRA for U-Net and text encoders."""
    made: dict[str, Tensor] = {}
    for path in sorted(Path(f"models/{variant}").rglob("*.safetensors")):
        for number, (key, weight) in enumerate(sorted(load_file(path).items())):
            if path.parent.name != "vae" and key.endswith(("to_v.weight", "q_proj.weight")):
                name = f"{path.parent.name}.{key.removesuffix('.weight')}"
                made[f"{name}.lora_A.weight"] = draw(number)(4, weight.shape[1])
                made[f"{name}.lora_B.weight"] = draw(-1 - number)(weight.shape[0], 4) / 10
    return made
