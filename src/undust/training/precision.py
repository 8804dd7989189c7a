"""The precision and algorithms of a run: the fastest ones here, by measurements.

Some processors are slower in bfloat16 than in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from undust.engines.probe import winograd_trains_faster
from undust.engines.winograd import SIZES, WinogradConvolution
from undust.training.configs import RunConfig
from undust.training.task import TrainingConfig

ROUNDS = 5
CLEAR = 2.0  # a ratio of times, or its inverse, that no further round would change enough
MIN_SPEEDUP = 1.05  # below this bfloat16 is not worth its rounding
C = TypeVar("C", bound=TrainingConfig)


def resolved(config: C, before: Mapping[str, Any] | None = None) -> tuple[C, str]:
    """The configuration with choices in place of "auto", and a note on `precision`, or "".

    before: the table `run` of the checkpoint that is resumed; "auto" keeps its choices. Versions
    without `muon_precision` used bfloat16, those without `convolutions` direct ones.
    """
    if config.run.place.type != "cpu":
        return _on_device(config)
    if config.optimizer.kind == "muon" and config.run.muon_precision == "auto":
        muon = "bf16" if before is not None or bfloat16_speed() >= 1 else "fp32"
        muon = (before or {}).get("muon_precision", muon)
        config = _with(config, muon_precision=muon)
    config, note = _resolved(config, (before or {}).get("precision"))
    return _with(config, convolutions=_convolutions(config.run, before)), note


def _convolutions(run: RunConfig, before: Mapping[str, Any] | None) -> str:
    """How they are computed; those of the checkpoint if they may be."""
    if run.precision != "fp32" or run.compile:
        return "direct"
    if run.convolutions != "auto":
        return run.convolutions
    if before is not None:
        return before.get("convolutions", "direct")
    return "winograd" if winograd_trains_faster() else "direct"


def _resolved(config: C, before: str | None) -> tuple[C, str]:
    requested = config.run.precision
    if requested in ("fp32", "fp16"):
        return config, ""
    if requested == "auto" and before in ("fp32", "bf16"):
        return _with(config, precision=before), ""
    ratio = bfloat16_speed()
    measured = f"bfloat16 takes 1/{ratio:.1f} of float32's time here"
    if ratio < 1:
        measured = f"bfloat16 takes {1 / ratio:.1f} × float32's time here"
    if requested == "bf16":
        slower = f"run.precision = bf16: {measured}; auto or fp32 is faster"
        return config, slower if ratio < 1 else ""
    chosen = "bf16" if ratio >= MIN_SPEEDUP else "fp32"
    return _with(config, precision=chosen), f"run.precision auto: {chosen}, since {measured}"


def _on_device(config: C) -> tuple[C, str]:
    """As `resolved`, on an accelerator: bfloat16 in place of "auto"."""
    names = ("precision", "muon_precision")
    auto = [name for name in names if getattr(config.run, name) == "auto"]
    return _with(config, convolutions="direct", **dict.fromkeys(auto, "bf16")), ""


@cache
def bfloat16_speed() -> float:
    """The time of a small training step in float32 over that in bfloat16, measured once.

    A convolution, by the faster algorithm, attention and two matrix products at the sizes of a
    small U-Net, forward and backward under autocast: about 0.4 s, and a single round where that is
    clear, as on processors that emulate bfloat16 in seconds. The processor time of one thread
    is measured: other load hardly changes that ratio, whereas several threads on a busy machine
    gave 0.6 to 2.3.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 128, 8, 8, generator=generator)
    weights = kernel, wide, narrow = [
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((128, 128, 3, 3), (128, 512), (512, 128))
    ]

    def seconds(*, half: bool) -> float:
        convolved = _by_winograd if not half and winograd_trains_faster() else _directly
        began = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            tokens = convolved(x, kernel).flatten(2).transpose(1, 2)
            heads = tokens.unflatten(2, (4, 32)).transpose(1, 2)
            attended = F.scaled_dot_product_attention(heads, heads, heads)
            out = attended.transpose(1, 2).flatten(2) @ wide @ narrow
        torch.autograd.grad(out.float().square().mean(), weights)
        return time.thread_time() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            _ = seconds(half=False), seconds(half=True)  # the first call is slower
            full, half, ratio = math.inf, math.inf, 1.0
            for _ in range(ROUNDS):
                full, half = min(full, seconds(half=False)), min(half, seconds(half=True))
                ratio = full / half
                if not 1 / CLEAR < ratio < CLEAR:
                    break
    finally:
        torch.set_num_threads(threads)
    return ratio


def _by_winograd(x: Tensor, kernel: Tensor) -> Tensor:
    return cast("Tensor", WinogradConvolution.apply(x, kernel, None, max(SIZES)))


def _directly(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel, padding=1)


def _with(config: C, **run_keys: str) -> C:
    run = config.run.model_copy(update=run_keys)
    return config.model_copy(update={"run": run})
