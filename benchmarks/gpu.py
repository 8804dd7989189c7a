"""All rows that need a GPU, one after the other, in under ten minutes; prints a table of them.

    python benchmarks/gpu.py [--seconds 570] [--device cuda]

A row that does not end within its part of the time is stopped, and the table says so. The data of
the last row are made before, on any machine: `python examples/emoji_set.py --size 128 --out
data/emoji-128`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
STEP = ("unet_step.py", "--dtype", "bfloat16", "--device", "DEVICE", "--rounds", "10")
SDXL = (*STEP, "--model", "sdxl", "--size", "1024")
FULL = ("full_size.py", "sdxl", "--size", "1024", "--dtype", "float16", "--device", "DEVICE")
ROWS = {  # what it shows: its share of the time, and the command
    "SDXL U-Net, 1024 px, bfloat16, against diffusers": (3, SDXL),
    "the same, both compiled": (6, (*SDXL, "--engine", "compile", "--peer", "diffusers-compiled")),
    "SDXL U-Net in 8-bit floating point, against diffusers compiled": (
        6,
        (*SDXL, "--engine", "fp8", "--peer", "diffusers-compiled"),
    ),
    "SD1.5 U-Net, 512 px, bfloat16, against diffusers": (2, STEP),
    "SDXL, 1024 px, 30 steps, float16, whole": (6, (*FULL, "--steps", "30", "--tolerance", "1")),
    "the same by the engine compile": (
        6,
        (*FULL, "--steps", "30", "--tolerance", "1", "--engine", "compile"),
    ),
    "the built-in model, batches of 64, against diffusers": (
        2,
        ("built_in.py", "--device", "DEVICE"),
    ),
    "the same with memory for one network": (
        6,
        (*FULL, "--steps", "10", "--tolerance", "1", "--room", "7"),
    ),
    "training SD1.5's U-Net, 512 px, 16 pictures, bf16, both compiled, against diffusers": (
        5,
        (
            "training_step.py",
            *("--device", "DEVICE", "--batch", "16", "--precision", "bf16", "--compile"),
        ),
    ),
    "training against a minimal loop": (
        3,
        ("training_throughput.py", "--device", "DEVICE", "--rounds", "3"),
    ),
    "decoding 2048 x 2048 in strips": (
        1,
        ("tiled_decode.py", "--size", "2048", "--dtype", "float16", "--device", "DEVICE"),
    ),
}
KEPT = 6  # of a row's last lines


def main() -> None:
    """Runs the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=570)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    end, left = time.monotonic() + asked.seconds, sum(share for share, _ in ROWS.values())
    print("| what | command | result |\n|---|---|---|", flush=True)
    for name, (share, command) in ROWS.items():
        limit = max(1.0, (end - time.monotonic()) * share / left)
        left -= share
        arguments = [asked.device if each == "DEVICE" else each for each in command]
        print(f"| {name} | `{' '.join(arguments)}` | {result(arguments, limit)} |", flush=True)


def result(arguments: list[str], limit: float) -> str:
    """The last lines that a command prints, or why there are none."""
    script, *options = arguments
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *options],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    failed = "" if done.returncode == 0 else f"failed ({done.returncode}): "
    return failed + "; ".join(lines[-KEPT:])


if __name__ == "__main__":
    main()
