"""Freed memory that is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

from undust.engines import memory

FAULTS = """
import resource
import torch
from undust.engines.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
x = torch.zeros(40 * 2**18)
for _ in range(40):  # until there is room among the small things that lie between large ones
    x + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="another C library than glibc")
def test_freed_memory_is_used_again():
    """The page faults of twenty tensors of 40 MiB, each freed before the next."""
    counts = [
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)], text=True))
        for keep in (True, False)
    ]
    assert counts[0] < counts[1] / 2
