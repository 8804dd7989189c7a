"""The parts of latent diffusion that are explained, one in each file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from undust.explain.parts import (
    first_stage,
    forward,
    guidance,
    latent_space,
    prediction,
    reverse,
    score,
    time,
    unet,
)
from undust.explain.result import PartResult
from undust.explain.setup import Setup

PARTS: Mapping[str, Callable[[Setup], PartResult]] = {
    "first-stage": first_stage.show,
    "forward": forward.show,
    "time": time.show,
    "unet": unet.show,
    "prediction": prediction.show,
    "reverse": reverse.show,
    "latent-space": latent_space.show,
    "score": score.show,
    "guidance": guidance.show,
}
"""By name, in the order of seed 000."""
