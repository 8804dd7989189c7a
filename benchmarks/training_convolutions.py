"""Training steps with Winograd's convolutions against direct ones, of a first stage and a U-Net.

    python benchmarks/training_convolutions.py [--rounds 5] [--widths 64 128 128 128]
                                               [--threads 1]

The recipes of the built-in model, with their batches, in float32; the first stage also with other
widths. Steps alternate in one process. Prints the medians of processor time and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

from training_throughput import RECIPES, make_inputs
from undust.training import kinds
from undust.training.run import prepare

CHOICES = ("direct", "winograd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 128, 128])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        trees = {
            "the built-in first stage": read("emoji-first-stage"),
            f"a first stage of {options.widths} channels": read("emoji-first-stage"),
            "the built-in diffusion model": read("emoji-diffusion"),
        }
        [_, wide, diffusion] = trees.values()
        wide["autoencoder"]["block_out_channels"] = options.widths
        diffusion["first_stage"] = str(Path(folder) / "first stage")
        for name, tree in trees.items():
            direct, fast = compare(tree, Path(folder), options.rounds)
            print(f"{name}: {direct:.3f} s and {fast:.3f} s of processor time; {direct / fast:.2f}")


def read(name: str) -> dict[str, Any]:
    """A recipe, as a tree."""
    return tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8"))


def compare(tree: dict[str, Any], folder: Path, rounds: int) -> list[float]:
    """The medians of a step's seconds, by `CHOICES`."""
    tree["data"] = {**tree["data"], "folder": str(folder / "pictures")}
    steps, seconds = {}, {choice: [] for choice in CHOICES}
    for choice in CHOICES:
        run = {"precision": "fp32", "device": "cpu", "convolutions": choice}
        tree["run"] = {**tree["run"], **run}
        out = tempfile.mkdtemp(dir=folder)
        steps[choice] = prepare(kinds.parse(tree, "here"), Path(out))[0].advance
    for number in range(rounds + 1):
        for choice, step in steps.items():
            began = time.process_time()
            step()
            if number:
                seconds[choice].append(time.process_time() - began)
    return [statistics.median(each) for each in seconds.values()]


if __name__ == "__main__":
    main()
