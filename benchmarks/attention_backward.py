"""A training step of the built-in U-Net with and without the CPU's fused attention.

    python benchmarks/attention_backward.py [--rounds 8]

The two alternate in one process. Prints samples a second and the ratio plain / fused.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from undust.networks import attention
from undust.networks.conditioning import Conditioning
from undust.networks.unet import UNet
from undust.training import kinds
from undust.training.diffusion import DiffusionConfig

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji-diffusion.toml"


def main() -> None:
    """Runs the rounds and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    rounds: int = parser.parse_args().rounds
    recipe = kinds.read(RECIPE)
    assert isinstance(recipe, DiffusionConfig)
    unet = UNet(recipe.unet)
    x, t = torch.randn(64, 16, 8, 8), torch.full((64,), 500.0)
    text = torch.randn(64, 24, 256)
    shortest = {"fused": 0, "plain": 256}  # tokens up to which the products are plain
    seconds: dict[str, list[float]] = {name: [] for name in shortest}
    for number in range(rounds + 1):
        for name, tokens in shortest.items():
            attention.SHORT = tokens
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                unet(x, t, Conditioning(len(text), text)).float().square().mean().backward()
            if number:
                seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, value in middle.items():
        print(f"{name}: {64 / value:.1f} samples/s")
    print(f"speed, plain / fused: {middle['fused'] / middle['plain']:.2f}")


if __name__ == "__main__":
    main()
