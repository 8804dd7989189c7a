"""Memory after many changes of model, LoRA, engine and size: it must not grow.

    python benchmarks/memory_growth.py [--rounds 100] [--model emoji]

Each round loads the model by another engine, generates at another size with and without a new LoRA
(random weights, in a file of its own), and drops it. Prints the memory of the process every tenth
of the rounds, MiB: what it holds, and what glibc could not give back.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import undust
from undust.engines.registry import ENGINES

SIZES = (1, 2, 1.5, 0.5)  # of the model's own


def held() -> float:
    """The memory of this process that is no file's, MiB."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines()
    )
    return int(fields["RssAnon"].split()[0]) / 1024


def lora(path: Path, model: undust.LatentDiffusion, seed: int) -> Path:
    """A LoRA of rank 4 for all queries of the denoiser."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in model.unet.named_modules():
        if name.endswith("to_q"):
            out, width = layer.get_parameter("weight").shape
            key = f"unet.{name}.lora"
            tensors[f"{key}_A.weight"] = torch.randn(4, width, generator=generator) / width**0.5
            tensors[f"{key}_B.weight"] = torch.randn(out, 4, generator=generator) / 10
    save_file(tensors, path)
    return path


def main() -> None:
    """Runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--model", default="emoji")
    asked = parser.parse_args()
    engines = list(ENGINES)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            model = undust.load(asked.model, engine=engines[number % len(engines)])
            factor = SIZES[number % len(SIZES)]
            size = tuple(int(side * factor) for side in model.size)
            options = {"size": size, "steps": 2, "seed": number}
            file = lora(Path(folder) / f"{number}.safetensors", model, number)
            model.generate("a cat", **options)
            model.generate(["a cat", "a dog"], loras=[file], **options)
            del model
            gc.collect()
            if (number + 1) % max(1, asked.rounds // 10) == 0:
                print(f"{number + 1} rounds: {held():.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
