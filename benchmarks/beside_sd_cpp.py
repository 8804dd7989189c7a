"""Stable Diffusion 1 at full size beside stable-diffusion.cpp: seconds a step and of decoding.

    pip install stable-diffusion-cpp-python    (compiles for minutes)
    python benchmarks/beside_sd_cpp.py FILE.safetensors [--size 512] [--steps 3] [--rounds 2]

FILE: a checkpoint of the original layout, such as `undust convert FOLDER FILE --to single-file`
makes of the folder that full_size.py writes. Both sides sample with Euler's method at guidance 3,
in a process of their own, in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

PROMPT = "a photograph of an astronaut riding a horse"


def ours(asked: argparse.Namespace) -> list[float]:
    """The times at which steps and decoding end."""
    import torch

    import undust

    model = undust.load(asked.file)
    ends: list[float] = []
    with torch.inference_mode():
        for step in model.steps(
            PROMPT, steps=asked.steps, size=asked.size, guidance=3.0, sampler="euler"
        ):
            last = step.x
            ends.append(time.perf_counter())
        model.decode(last)
    return [*ends, time.perf_counter()]


def theirs(asked: argparse.Namespace) -> list[float]:
    """The same of stable-diffusion.cpp."""
    from stable_diffusion_cpp import StableDiffusion  # pyright: ignore[reportMissingImports]

    model: Any = StableDiffusion(model_path=asked.file, n_threads=2, verbose=False)
    ends: list[float] = []
    model.generate_image(
        prompt=PROMPT,
        width=asked.size,
        height=asked.size,
        sample_steps=asked.steps,
        sample_method="euler",
        cfg_scale=3.0,
        progress_callback=lambda *_: ends.append(time.perf_counter()),
    )
    return [*ends[-asked.steps :], time.perf_counter()]


SIDES = {"undust": ours, "stable-diffusion.cpp": theirs}


def main() -> None:
    """Runs both in turn and prints their times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        ends = SIDES[asked.side](asked)
        step = (ends[-2] - ends[0]) / (len(ends) - 2)
        print(json.dumps({"step": step, "decode": ends[-1] - ends[-2]}))
        return
    for number in range(1, asked.rounds + 1):
        found: dict[str, dict[str, float]] = {}
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        for part in ("step", "decode"):
            a, b = (times[part] for times in found.values())
            print(f"round {number}, {part}: {a:.1f} s against {b:.1f} s, {a / b:.2f}", flush=True)


if __name__ == "__main__":
    main()
