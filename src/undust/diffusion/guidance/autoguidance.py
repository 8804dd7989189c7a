"""Autoguidance: away from a worse model."""

from __future__ import annotations

from undust.diffusion.guidance.difference import DifferenceGuidance
from undust.diffusion.guidance.registry import GuidanceContext, guidance


@guidance("autoguidance", "around")
class Autoguidance(DifferenceGuidance):
    """Away from a worse model, such as one trained for a shorter time (Karras et al. 2024a).

    The paper's w is scale + 1, where the guidance so far is the prompt alone.
    """

    @classmethod
    def build(
        cls, context: GuidanceContext, *, model: str, model_hash: str = "", scale: float = 1.0
    ) -> Autoguidance:
        """model: its name or path; model_hash: that of its weights, "" for any."""
        worse = context.other_model(model, model_hash)
        return cls(context.denoise, context.positive, worse, scale)
