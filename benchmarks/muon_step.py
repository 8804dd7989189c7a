"""Time of Muon's update of the built-in U-Net's matrices: torch's, and ours in either precision.

.venv/bin/python benchmarks/muon_step.py --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import time
import tomllib
from pathlib import Path

import torch
from torch import nn

from undust.networks.config import UNetConfig
from undust.networks.unet import UNet
from undust.training.muon import Muon

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji-diffusion.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    unet = UNet(UNetConfig.read(tomllib.loads(RECIPE.read_text("utf-8"))["unet"]))
    shapes = [(len(p), p[0].numel()) for p in unet.parameters() if p.ndim >= 2]
    matrices = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizers = {
        "torch.optim.Muon (bfloat16)": torch.optim.Muon(matrices),
        "undust, bfloat16": Muon(matrices, 0.0, torch.bfloat16),
        "undust, float32": Muon(matrices, 0.0, torch.float32),
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds + 1):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - began)
    base = statistics.median(times["torch.optim.Muon (bfloat16)"][1:])
    for name, each in times.items():
        median = statistics.median(each[1:])
        print(f"{name}: {median:.3f} s, {median / base:.2f} ×")


if __name__ == "__main__":
    main()
