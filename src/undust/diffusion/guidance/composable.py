"""Several prompts at once: a picture that is this AND that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest
from undust.diffusion.guidance.registry import GuidanceContext, Prompt, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("and", "prompt")
@dataclass(frozen=True, eq=False)
class Composable(Guidance):
    """Another prompt that the picture has to fit as well (Liu et al. 2022).

    x0 = empty + Σ weight·(prompt − empty), the paper's equation on x0. A negative weight is AND
    NOT. What it gives can stand for the positive prompt of classifier-free guidance away from the
    same `empty`, whose scale then multiplies all weights. Neutral with one prompt of weight 1;
    prompts of weight 0 are not asked. Raises UndustError for no prompts and for weights that are
    not finite.
    """

    empty: Denoise
    prompts: Sequence[tuple[Denoise, float]]

    def __post_init__(self) -> None:
        if not self.prompts or not all(math.isfinite(weight) for _, weight in self.prompts):
            weights = [weight for _, weight in self.prompts]
            raise UndustError(f"composable: one finite weight or more is needed, not {weights}")

    @classmethod
    def build(cls, context: GuidanceContext, *, prompt: Prompt, weight: float = 1.0) -> Composable:
        """The prompts so far, of weight 1, and another one."""
        prompts = ((context.denoise, 1.0), (context.conditioned_on(prompt), weight))
        return cls(context.negative, prompts)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """The prompts that count, and the empty one unless they are one and it counts once."""
        del at
        asked = [(prompt, weight) for prompt, weight in self.prompts if weight != 0]
        weights = [weight for _, weight in asked]
        prompts = [prompt for prompt, _ in asked]
        if weights == [1]:
            return (yield prompts)[0]
        *estimates, empty = yield [*prompts, self.empty]
        x0 = empty
        for weight, estimate in zip(weights, estimates, strict=True):
            x0 = x0 + weight * (estimate - empty)
        return x0
