"""What a part of an explanation comes to: figures and measured effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from undust.explain.effect import Effect
from undust.explain.figures import Figure


@dataclass(frozen=True)
class PartResult:
    """Figures in order, effects, and more numbers for the JSON."""

    figures: Sequence[Figure]
    effects: Sequence[Effect]
    numbers: Mapping[str, object] = field(default_factory=dict[str, object])
