"""The processor's name."""

from __future__ import annotations

import hashlib
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
    return _fields().get("model name") or platform.processor() or platform.machine()


def processor_digits() -> str:
    """A hash that tells the machine's processor from others, also of the same name."""
    told = (processor(), _fields().get("flags"), platform.machine(), platform.node())
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _fields() -> dict[str, str]:
    """The first processor's fields in the system's list."""
    found: dict[str, str] = {}
    with suppress(OSError, UndustError, ValueError):
        for line in read_text(Path("/proc/cpuinfo"), 2**24).splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found
