"""The parts of latent diffusion that are explained, one in each file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from undust.explain.parts import cross_attention, self_attention, time_embedding, unet
from undust.explain.result import PartResult
from undust.explain.setup import Setup

PARTS: Mapping[str, Callable[[Setup], PartResult]] = {
    "unet": unet.show,
    "time-embedding": time_embedding.show,
    "self-attention": self_attention.show,
    "cross-attention": cross_attention.show,
}
"""By name, in the order of seed 000."""
