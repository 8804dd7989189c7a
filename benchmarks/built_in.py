"""Pictures a minute of the built-in model: undust against diffusers with the same folder.

    python benchmarks/built_in.py [--batch 64] [--rounds 3] [--steps 20] [--engine auto]
                                   [--device cpu]

Both sides sample with DEIS on Karras' levels and guidance 4, and write PNG files. Each has a
process of its own; batches alternate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alternating import alternate

PROMPTS = ("a smiling cat", "red heart", "빨간 하트", "a rocket")
SIDES = ("undust", "diffusers")


def prepare(side: str, asked: argparse.Namespace) -> Callable[[], float]:
    """Loads the model; the call generates and writes a batch."""
    prompts = [PROMPTS[k % len(PROMPTS)] for k in range(asked.batch)]
    if side == "undust":
        import undust

        model = undust.load("emoji", engine=asked.engine, device=asked.device)

        def generate() -> list[Any]:
            made = model.generate(prompts, seed=1, steps=asked.steps)
            return [picture.image for picture in made]
    else:
        from diffusers import DEISMultistepScheduler, StableDiffusionPipeline

        from undust.formats.locate import BUILT_IN

        theirs = StableDiffusionPipeline.from_pretrained(BUILT_IN / "emoji").to(asked.device)
        scheduler = DEISMultistepScheduler.from_config(
            theirs.scheduler.config, use_karras_sigmas=True
        )
        theirs.scheduler = scheduler
        theirs.set_progress_bar_config(disable=True)

        def generate() -> list[Any]:
            return theirs(prompts, num_inference_steps=asked.steps, guidance_scale=4.0).images

    def call() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for number, image in enumerate(generate()):
                image.save(Path(folder) / f"{number}.png")
            return time.perf_counter() - start

    return call


def main() -> None:
    """Runs the rounds and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    times = alternate(SIDES, asked.rounds, prepare, asked)
    speedups = [b / a for a, b in zip(*times.values(), strict=True)]
    rates = (60 * asked.batch / statistics.median(each) for each in times.values())
    shown = ", ".join(f"{side} {rate:.0f}" for side, rate in zip(SIDES, rates, strict=True))
    print(
        f"pictures a minute: {shown}; ratio {statistics.median(speedups):.2f} "
        f"({min(speedups):.2f} to {max(speedups):.2f}, {len(speedups)} rounds)"
    )


if __name__ == "__main__":
    main()
