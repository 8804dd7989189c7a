"""Another prompt from some noise level on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from undust.diffusion.guidance.base import CLOSE, Asking, Guidance, Moment
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class PromptSchedule(Guidance):
    """`first`, and from σ ≤ each of the falling levels on the denoiser beside it.

    What AUTOMATIC1111's web UI calls prompt editing. Neutral without later denoisers, and at the
    level 0, which is never reached. Raises UndustError for levels that do not fall.
    """

    first: Denoise
    later: Sequence[tuple[float, Denoise]]

    def __post_init__(self) -> None:
        levels = [level for level, _ in self.later]
        if not all(a > b for a, b in pairwise(levels)) or not all(a >= 0 for a in levels):
            raise UndustError(f"prompt schedule: the levels have to fall, down to 0, not {levels}")

    def ask(self, now: Moment) -> Asking:
        """The one whose turn it is."""
        chosen = self.first
        for begin, denoise in self.later:
            if begin > 0 and now.level <= begin * (1 + CLOSE):
                chosen = denoise
        return (yield [chosen])[0]
