"""The processor's name."""

from __future__ import annotations

import platform
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
