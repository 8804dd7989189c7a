"""The memory of this process."""

from __future__ import annotations

import ctypes
import math
from contextlib import suppress
from functools import cache
from pathlib import Path

from undust.errors import UndustError
from undust.regular import read_text

# Parameters of glibc's mallopt, and the sizes up to which freed memory is kept.
MMAP_THRESHOLD, LARGEST_BLOCK = -3, 2**28
TRIM_THRESHOLD, MOST_KEPT = -1, 2**30

SHARE = 4  # the least times a model's files have to fit into memory, to be loaded twice as large


def is_short_for(size: int) -> bool:
    """Whether memory is short for a model with files of so many bytes."""
    return size * SHARE > available()


def available() -> float:
    """Bytes of memory that this process may still use, as far as the system tells; else infinity.

    The limit of a container is that of cgroups v2.
    """
    found = math.inf
    with suppress(OSError, UndustError, ValueError):
        for line in read_text(Path("/proc/meminfo"), 2**20).splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024
    with suppress(OSError, UndustError, ValueError):
        found = min(found, int(read_text(Path("/sys/fs/cgroup/memory.max"), 2**10)))
    return found


@cache
def keep_freed_memory() -> bool:
    """Makes glibc keep up to 1 GiB of freed memory for the next tensors; whether it does.

    By default tensors of more than 32 MiB are returned to the system at once, and each new one is
    zeroed by it page by page, which takes four times as long as an addition of two of them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    kept = mallopt(MMAP_THRESHOLD, LARGEST_BLOCK) == 1
    return kept and mallopt(TRIM_THRESHOLD, MOST_KEPT) == 1
