"""The memory of this process."""

from __future__ import annotations

import ctypes
from functools import cache

# Parameters of glibc's mallopt, and the sizes up to which freed memory is kept.
MMAP_THRESHOLD, LARGEST_BLOCK = -3, 2**28
TRIM_THRESHOLD, MOST_KEPT = -1, 2**30


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
