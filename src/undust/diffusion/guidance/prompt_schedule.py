"""Another prompt from some noise level on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from undust.diffusion.guidance.base import CLOSE, EvalState, Guidance, GuidanceRequest
from undust.diffusion.guidance.registry import GuidanceContext, Limits, Prompt, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("then", "prompt")
@dataclass(frozen=True, eq=False)
class PromptSchedule(Guidance):
    """Another prompt from some step on.

    `first`, and from σ ≤ each of the falling levels on the denoiser beside it: what AUTOMATIC1111's
    web UI calls prompt editing. Neutral without later denoisers, and at the level 0, which is never
    reached. Raises UndustError for levels that do not fall.
    """

    first: Denoise
    later: Sequence[tuple[float, Denoise]]

    def __post_init__(self) -> None:
        levels = [level for level, _ in self.later]
        if not all(a > b for a, b in pairwise(levels)) or not all(a >= 0 for a in levels):
            raise UndustError(f"prompt schedule: the levels have to fall, down to 0, not {levels}")

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        prompt: Prompt,
        after: Annotated[float | None, Limits(ge=0, le=1)] = None,
        sigma: Annotated[float | None, Limits(ge=0)] = None,
    ) -> PromptSchedule:
        """The prompts so far, and another one after that share of the steps or below that σ."""
        level = context.sigma_after(after or 0) if sigma is None else sigma
        turn = level, context.conditioned_on(prompt)
        if isinstance(context.denoise, PromptSchedule):
            return cls(context.denoise.first, [*context.denoise.later, turn])
        return cls(context.denoise, [turn])

    @staticmethod
    def check(after: float | None = None, sigma: float | None = None, **_settings: object) -> None:
        """Raises UndustError unless one of the two is given."""
        if (after is None) == (sigma is None):
            raise UndustError("guide then: give either after=, a share of the steps, or sigma=")

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """The one whose turn it is."""
        chosen = self.first
        for begin, denoise in self.later:
            if begin > 0 and at.level <= begin * (1 + CLOSE):
                chosen = denoise
        return (yield [chosen])[0]
