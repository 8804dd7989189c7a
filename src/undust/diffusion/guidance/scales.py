"""Scales that change on the way: any function of σ is one, and so is a table of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from undust.diffusion.guidance.base import CLOSE
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.errors import UndustError


@guidance("scales", "scale")
@dataclass(frozen=True, eq=False)
class ScaleTable:
    """Guidance scales over the steps, from the first to the last, in place of the one.

    values: [steps], or for each step and frame [steps, frames]. In a recipe there may be fewer,
    with straight lines in between: "8 2".

    sigmas: the sampler's [steps + 1]. A step's row holds from its σ down to the next one's, so that
    samplers which ask in between are answered too. Raises UndustError if the rows are not as many
    as the steps, or a value is not finite.
    """

    values: Tensor
    sigmas: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim not in (1, 2) or len(self.values) != len(self.sigmas) - 1:
            raise UndustError(
                f"scales: a table of shape {[*self.values.shape]} does not fit "
                f"{len(self.sigmas) - 1} steps; it is [steps] or [steps, frames]"
            )
        if not self.values.isfinite().all():
            raise UndustError("scales: every one has to be finite")

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        values: Annotated[tuple[float, ...], Limits(min_length=1, max_length=1000)],
    ) -> ScaleTable:
        """For the steps of a batch."""
        table = torch.tensor(values, dtype=torch.float64)
        return ScaleTable(spread(table, len(context.sigmas) - 1), context.sigmas)

    def __call__(self, level: float) -> Tensor:
        """The number, or the numbers [frames], of the step that σ = level lies in."""
        begun = int((self.sigmas[:-1] >= level * (1 - CLOSE)).sum())
        return self.values[max(begun - 1, 0)]


def spread(values: Tensor, steps: int) -> Tensor:
    """Values [K] or [K, frames] over any number of steps: the first, the last, lines in between.

    With as many steps as values it is the table itself.
    """
    place = torch.linspace(0, len(values) - 1, steps, dtype=torch.float64)
    low = place.long().clamp(max=max(len(values) - 2, 0))
    high = (low + 1).clamp(max=len(values) - 1)
    part = (place - low).reshape(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values.double()[low], values.double()[high], part)
