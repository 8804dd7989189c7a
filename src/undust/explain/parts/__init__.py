"""The parts of latent diffusion that are explained, one in each file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from undust.explain.parts import prediction, score, unet
from undust.explain.result import PartResult
from undust.explain.setup import Setup

PARTS: Mapping[str, Callable[[Setup], PartResult]] = {
    "unet": unet.show,
    "prediction": prediction.show,
    "score": score.show,
}
"""By name, in the order of seed 000."""
