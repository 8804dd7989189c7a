"""Measurements of the processor, in fractions of a second.

They are kept in the user's cache folder, for this processor and these versions of torch and undust.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, wraps

import torch
from torch import nn

from undust.engines.int8 import Int8Conv2d
from undust.engines.processor import processor_digits
from undust.engines.winograd import replace_convolutions
from undust.formats.user_cache import read_cached, write_cached
from undust.version import __version__

FILE = "probe.json"
LONG = 0.3  # seconds; calls that take longer are not repeated
ROUNDS = 5
MIN_SPEEDUP = 1.1  # below it another rounding is not worth it

_KNOWN: list[Callable[[], None]] = []


def kept(measure: Callable[[], float]) -> Callable[[], float]:
    """A measurement that is made once."""

    @cache
    def known() -> float:
        place = [processor_digits(), torch.__version__, __version__]
        before = read_cached(FILE)
        numbers = before.get("numbers") if before.get("place") == place else None
        numbers = numbers if isinstance(numbers, dict) else {}
        found = numbers.get(measure.__name__)
        if not isinstance(found, float):
            found = measure()
            write_cached(FILE, {"place": place, "numbers": {**numbers, measure.__name__: found}})
        return found

    _KNOWN.append(known.cache_clear)
    return wraps(measure)(known)


def forget() -> None:
    """Makes all measurements anew when they are needed."""
    write_cached(FILE, {})
    for clear in _KNOWN:
        clear()


def winograd_is_faster() -> bool:
    """Whether a convolution of Winograd's is faster here than torch's."""
    return winograd_speedup() >= MIN_SPEEDUP


@kept
def winograd_speedup() -> float:
    """The time of a convolution of torch's over that of Winograd's.

    256 channels of 32×32 pixels, two pictures: about 0.1 s.
    """
    with _measuring():
        conv, fast = (nn.Conv2d(256, 256, 3, padding=1) for _ in range(2))
        replace_convolutions(fast)
        x = torch.zeros(2, 256, 32, 32).contiguous(memory_format=torch.channels_last)
        return _alone(lambda: conv(x)) / _alone(lambda: fast(x))


def winograd_trains_faster() -> bool:
    """Whether a convolution and its gradients are computed faster by Winograd's algorithm."""
    return winograd_training_speedup() >= MIN_SPEEDUP


@kept
def winograd_training_speedup() -> float:
    """The time of a convolution of torch's with all its gradients over that of Winograd's.

    128 channels of 16×16 pixels, four pictures: about 0.1 s.
    """
    with _measuring(), torch.enable_grad():
        conv, fast = (nn.Conv2d(128, 128, 3, padding=1) for _ in range(2))
        replace_convolutions(fast)
        x = torch.zeros(4, 128, 16, 16).contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        return _alone(lambda: conv(x).sum().backward()) / _alone(lambda: fast(x).sum().backward())


def int8_is_faster() -> bool:
    """Whether a convolution in 8 bits is faster here than torch's in float32, and right."""
    return int8_speedup() >= MIN_SPEEDUP


@kept
def int8_speedup() -> float:
    """The time of a convolution of torch's in float32 over that in 8 bits.

    As for `winograd_speedup`. 0 if this build of torch has no such products, or if they overflow,
    as on processors that add up in 16 bits.
    """
    with _measuring():
        conv, short = (nn.Conv2d(256, 256, 3, padding=1) for _ in range(2))
        short.weight.copy_(conv.weight.fill_(1))
        short.__class__ = Int8Conv2d
        x = torch.ones(2, 256, 32, 32).contiguous(memory_format=torch.channels_last)
        try:
            right = torch.allclose(conv(x), short(x), rtol=0.02)
        except (AttributeError, RuntimeError):
            return 0.0
        if not right:
            return 0.0
        return _alone(lambda: conv(x)) / _alone(lambda: short(x))


def fastest_dtype() -> str:
    """The faster precision, fp32 or bf16. Some processors are slower in bfloat16."""
    return "bf16" if bfloat16_speedup() > MIN_SPEEDUP else "fp32"


@kept
def bfloat16_speedup() -> float:
    """The time of two layers in float32 over that in bfloat16, in about 0.1 s.

    They are a convolution, by the faster algorithm, and a linear layer.
    """
    return _layers_seconds(torch.float32) / _layers_seconds(torch.bfloat16)


def _layers_seconds(dtype: torch.dtype) -> float:
    with _measuring():
        conv = nn.Conv2d(256, 256, 3, padding=1, dtype=dtype)
        linear = nn.Linear(256, 1024, dtype=dtype)
        if winograd_is_faster():
            replace_convolutions(conv)
        x = torch.zeros(2, 256, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
        tokens = x.flatten(2).transpose(1, 2)
        return _alone(lambda: conv(x)) + _alone(lambda: linear(tokens))


@contextmanager
def _measuring() -> Generator[None]:
    """One thread, which waits for no other: its times compare well beside other programs too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def fastest(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The least of several times that a call takes, in seconds, after one that is not counted.

    A call that takes long, as in a precision that a processor does not have, is made once.
    """
    first = _seconds(call, clock)
    return first if first > LONG else min(_seconds(call, clock) for _ in range(ROUNDS))


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def _alone(call: Callable[[], object]) -> float:
    """As `fastest`, in processor time of this thread, which other programs hardly change."""
    fine = time.get_clock_info("thread_time").resolution < 1e-4
    return fastest(call, time.thread_time if fine else time.perf_counter)
