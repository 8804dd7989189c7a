"""Several prompts at once: a picture that is this AND that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from undust.diffusion.guidance.base import Asking, Guidance, Moment
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class Composable(Guidance):
    """x0 = empty + Σ weight·(prompt − empty) (Liu et al. 2022, on x0).

    A negative weight is AND NOT. What it gives can stand for the positive prompt of classifier-free
    guidance away from the same `empty`, whose scale then multiplies all weights. Neutral with one
    prompt of weight 1; prompts of weight 0 are not asked. Raises UndustError for no prompts and for
    weights that are not finite.
    """

    empty: Denoise
    prompts: Sequence[tuple[Denoise, float]]

    def __post_init__(self) -> None:
        if not self.prompts or not all(math.isfinite(weight) for _, weight in self.prompts):
            weights = [weight for _, weight in self.prompts]
            raise UndustError(f"composable: one finite weight or more is needed, not {weights}")

    def ask(self, now: Moment) -> Asking:
        """The prompts that count, and the empty one unless they are one and it counts once."""
        del now
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
