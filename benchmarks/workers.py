"""A training step of the built-in model: all cores on every product, or a worker on each core.

    python benchmarks/workers.py [--rounds 5]

The two alternate in one process, on the recipe's batch. The time is that of gradient and update,
AdamW's and Muon's. Prints samples a second and the ratio workers / one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from undust.networks.unet import UNet
from undust.training import recipes
from undust.training.optimizers import Optimizers
from undust.training.recipes import DiffusionRecipe
from undust.training.workers import Workers

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji-diffusion.toml"


def stepper(recipe: DiffusionRecipe, count: int, kind: str) -> Callable[[], None]:
    """A U-Net of its own, and what makes one step of it."""
    torch.manual_seed(0)
    unet = UNet(recipe.unet)
    parameters: dict[str, nn.Parameter] = dict(unet.named_parameters())
    workers = Workers(count)
    settings = recipe.optimizer.model_copy(update={"kind": kind})
    optimizers = Optimizers(parameters, settings, workers)
    size = recipe.run.batch // count

    def gradient(_: int) -> tuple[Tensor, ...]:
        x, t, text = (
            torch.randn(size, 16, 8, 8),
            torch.full((size,), 500.0),
            torch.randn(size, 24, 256),
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = unet(x, t, text).float().square().mean()
        return torch.autograd.grad(loss, list(parameters.values()))

    def step() -> None:
        with workers.alone():
            for value, *parts in zip(
                parameters.values(), *workers.run(gradient, range(count)), strict=True
            ):
                value.grad = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
            optimizers.step(1e-3)

    return step


def main() -> None:
    """Runs the rounds and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    recipe = recipes.read(RECIPE)
    assert isinstance(recipe, DiffusionRecipe)
    cores = torch.get_num_threads()
    for kind in ("adamw", "muon"):
        steps = {count: stepper(recipe, count, kind) for count in (1, cores)}
        seconds: dict[int, list[float]] = {count: [] for count in steps}
        for number in range(rounds + 1):
            for count, step in steps.items():
                start = time.perf_counter()
                step()
                if number:
                    seconds[count].append(time.perf_counter() - start)
        rate = {count: recipe.run.batch / statistics.median(t) for count, t in seconds.items()}
        print(
            f"{kind}: {rate[1]:.1f} samples/s with {cores} threads on each product, "
            f"{rate[cores]:.1f} with {cores} workers: {rate[cores] / rate[1]:.2f} ×"
        )


if __name__ == "__main__":
    main()
