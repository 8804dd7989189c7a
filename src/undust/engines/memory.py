"""The memory of the machine, and of this process."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from undust.errors import UndustError
from undust.regular import read_text

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
UNKNOWN = 8 * 2**30
# Parameters of glibc's mallopt, and the sizes up to which freed memory is kept.
MMAP_THRESHOLD, LARGEST_BLOCK = -3, 2**28
TRIM_THRESHOLD, MOST_KEPT = -1, 2**30


def total_memory() -> int:
    """Bytes of main memory, or of the part that a container may use."""
    found = UNKNOWN
    if hasattr(os, "sysconf"):  # not on Windows
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, UndustError, ValueError):
        found = min(found, int(read_text(LIMIT, 100)))
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
