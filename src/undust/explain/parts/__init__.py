"""The parts of latent diffusion that are explained, one in each file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from undust.explain.parts import (
    cross_attention,
    first_stage,
    forward,
    guidance,
    latent_space,
    prediction,
    reverse,
    score,
    self_attention,
    time,
    time_embedding,
    unet,
)
from undust.explain.result import PartResult
from undust.explain.setup import Setup

PARTS: Mapping[str, Callable[[Setup], PartResult]] = {
    "first-stage": first_stage.show,
    "forward": forward.show,
    "time": time.show,
    "unet": unet.show,
    "time-embedding": time_embedding.show,
    "self-attention": self_attention.show,
    "prediction": prediction.show,
    "reverse": reverse.show,
    "latent-space": latent_space.show,
    "score": score.show,
    "guidance": guidance.show,
    "cross-attention": cross_attention.show,
}
"""By name, in the order of seed 000; after them guidance and the attention to words."""
