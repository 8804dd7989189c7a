"""Time of a training step of the built-in U-Net: torch's Muon, and ours in both precisions.

.venv/bin/python benchmarks/muon_step.py --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import time
import tomllib
from pathlib import Path

import torch
from torch import Tensor

from undust.networks.conditioning import Conditioning
from undust.networks.unet import UNet
from undust.training.diffusion import DiffusionConfig
from undust.training.optimizers import Optimizers
from undust.training.precision import bfloat16_speed

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji-diffusion.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    recipe = DiffusionConfig.model_validate(tomllib.loads(RECIPE.read_text("utf-8")))
    unet = UNet(recipe.unet)
    parameters = dict(unet.named_parameters())
    optimizers = {
        name: Optimizers(parameters, recipe.optimizer, half=half)
        for name, half in (("torch, bfloat16", True), ("bfloat16", True), ("float32", False))
    }
    torchs = optimizers["torch, bfloat16"]
    torchs._optimizers[1] = torch.optim.Muon(torchs._matrices.values(), weight_decay=0.01)
    half = bfloat16_speed() > 1
    print(f"{torch.get_num_threads()} threads; the network in {'bfloat16' if half else 'float32'}")
    updates: dict[str, list[float]] = {name: [] for name in optimizers}
    steps: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds + 1):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            loss(unet, recipe, half=half).backward()
            middle = time.perf_counter()
            optimizer.step(1e-6)
            ended = time.perf_counter()
            unet.zero_grad()
            updates[name].append(ended - middle)
            steps[name].append(ended - began)
    for title, times in (("update", updates), ("whole step", steps)):
        medians = {name: statistics.median(each[1:]) for name, each in times.items()}
        for name, median in medians.items():
            ratio = median / medians["torch, bfloat16"]
            print(f"{title}, {name}: {median:.3f} s, {ratio:.2f} ×")


def loss(unet: UNet, recipe: DiffusionConfig, *, half: bool) -> Tensor:
    """The squared output for a batch of the recipe's shapes."""
    batch, size, length = recipe.run.batch, recipe.unet.sample_size, recipe.captions.length
    x = torch.randn(batch, recipe.unet.in_channels, size, size)
    words = torch.randn(batch, length, recipe.text_encoder.hidden_size)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        cond = Conditioning(batch, words)
        return unet(x, torch.full((batch,), 500.0), cond).float().square().mean()


if __name__ == "__main__":
    main()
