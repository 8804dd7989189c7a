"""A measured effect: what changes when a part is removed, over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ERRORS = 2.0  # standard errors by which a mean has to differ from 0 to say so

Claim = Literal["higher", "lower"]
Verdict = Literal["as claimed", "unclear", "opposite", "no claim"]


@dataclass(frozen=True)
class Effect:
    """Paired measurements with a part as it is and with it changed.

    name: for the JSON; text: for people, with the unit; values: with the change, one for each seed;
    reference: as it is, in the same order; claim: what the change does to the value, as the theory
    of the part says, None where it says nothing; digits: after the decimal point.
    """

    name: str
    text: str
    values: Sequence[float]
    reference: Sequence[float]
    claim: Claim | None = None
    digits: int = 2

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.reference) > 1, f"{self.name}: pairs of several seeds"

    @property
    def difference(self) -> tuple[float, float]:
        """The mean of the paired differences and its standard error."""
        pairs = zip(self.values, self.reference, strict=True)
        mean, deviation = mean_and_deviation([value - own for value, own in pairs])
        return mean, deviation / len(self.values) ** 0.5

    @property
    def verdict(self) -> Verdict:
        """Whether the mean difference, beyond two standard errors, is as claimed."""
        if self.claim is None:
            return "no claim"
        mean, error = self.difference
        if abs(mean) <= ERRORS * error:
            return "unclear"
        return "as claimed" if (mean > 0) == (self.claim == "higher") else "opposite"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Of a sample."""
    return statistics.fmean(values), statistics.stdev(values)
