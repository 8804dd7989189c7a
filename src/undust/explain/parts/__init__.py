"""The parts of latent diffusion that are explained, one in each file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from undust.explain.parts import guidance, reverse, time, unet
from undust.explain.result import PartResult
from undust.explain.setup import Setup

PARTS: Mapping[str, Callable[[Setup], PartResult]] = {
    "time": time.show,
    "unet": unet.show,
    "reverse": reverse.show,
    "guidance": guidance.show,
}
"""By name, in the order of seed 000."""
