"""The memory that a run takes."""

from __future__ import annotations

import sys

import torch


def peak_memory() -> dict[str, float]:
    """The most memory that this process had, GiB: "memory", and "memory_cuda" on a GPU."""
    found: dict[str, float] = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
        found["memory"] = round(peak / (2**30 if sys.platform == "darwin" else 2**20), 4)
    if torch.cuda.is_available() and (allocated := torch.cuda.max_memory_allocated()):
        found["memory_cuda"] = round(allocated / 2**30, 4)
    return found
