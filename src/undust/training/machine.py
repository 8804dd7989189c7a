"""The machine of a run: its processor, and the memory that the run takes."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch

from undust.errors import UndustError
from undust.regular import read_text


def processor(device: torch.device | None = None) -> str:
    """The name of a device: of the GPU, else of the machine's processor."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError, UndustError, ValueError):
        for line in read_text(Path("/proc/cpuinfo"), 2**24).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


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
