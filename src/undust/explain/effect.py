"""A measured effect: what changes when a part is removed, over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95  # of the interval of a mean difference, which must not contain 0 to count

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
        """The mean of the paired differences and half the length of its 95 % interval.

        By Student's t, as for normal differences.
        """
        pairs = zip(self.values, self.reference, strict=True)
        mean, deviation = mean_and_deviation([value - own for value, own in pairs])
        count = len(self.values)
        return mean, t_quantile(CONFIDENCE, count - 1) * deviation / count**0.5

    @property
    def verdict(self) -> Verdict:
        """Whether the mean difference is as claimed, if its interval does not contain 0."""
        if self.claim is None:
            return "no claim"
        mean, half = self.difference
        if abs(mean) <= half:
            return "unclear"
        return "as claimed" if (mean > 0) == (self.claim == "higher") else "opposite"


def t_quantile(confidence: float, degrees: int) -> float:
    """The t with −t … t of this probability, for Student's distribution of whole degrees."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        inside = _t_probability(middle, degrees) < confidence
        low, high = (middle, high) if inside else (low, middle)
    return high


def _t_probability(t: float, degrees: int) -> float:
    """P(|T| < t): a finite sum for whole degrees (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / degrees**0.5)
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):  # each term has two factors more than the one before
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Of a sample."""
    return statistics.fmean(values), statistics.stdev(values)
