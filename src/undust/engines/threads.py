"""The number of threads that is fastest at the moment."""

from __future__ import annotations

import os
import time

import torch
from torch.nn import functional as F

ROUNDS = 15  # of a convolution and a function: about 10 ms, more than other programs' turns


def avoid_waiting() -> bool:
    """Uses one thread from now on if several are slower; returns whether that was so.

    Threads wait for each other after every layer. Beside a program that keeps one of two cores
    busy, a small picture took 39 s with two threads and 0.5 s with one. It takes about 30 ms;
    OMP_NUM_THREADS in the environment is followed instead.
    """
    several = torch.get_num_threads()
    if several == 1 or os.environ.get("OMP_NUM_THREADS"):
        return False
    together = _seconds()
    torch.set_num_threads(1)
    if _seconds() < together:
        return True
    torch.set_num_threads(several)
    return False


@torch.inference_mode()
def _seconds() -> float:
    """Small layers, one after the other."""
    x = torch.ones(2, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    kernels = torch.ones(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    F.conv2d(x, kernels, None, 1, 1)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        F.silu(F.conv2d(x, kernels, None, 1, 1))
    return time.perf_counter() - began
