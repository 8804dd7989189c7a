"""How long it takes until a model can be loaded, and how long `--help` takes.

    python benchmarks/import_time.py [--rounds 5]

Each import has a fresh process; the candidates alternate. torch alone is the floor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CANDIDATES = {
    "import torch": ["-c", "import torch"],
    "undust: ready to load": ["-c", "import undust; undust.load"],
    "diffusers: ready to load": [
        "-c",
        "from diffusers import StableDiffusionPipeline; StableDiffusionPipeline.from_pretrained",
    ],
    "undust --help": ["-m", "undust", "--help"],
}


def main() -> None:
    """Runs the rounds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for number in range(rounds + 1):
        for name, arguments in CANDIDATES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if number:  # the first round fills the disk's cache
                seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["import torch"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:26} {middle:6.2f} s  ({min(times):.2f} to {max(times):.2f})", end="")
        print(f"  {middle / floor:5.2f} x torch")


if __name__ == "__main__":
    main()
