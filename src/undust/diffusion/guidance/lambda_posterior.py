"""Known views of a video by steps of x towards them: the posterior sampling of NVS-Solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from undust.diffusion.guidance.lambda_guidance import LambdaGuidance
from undust.errors import UndustError


@dataclass(frozen=True, eq=False)
class PosteriorSampling:
    """x moved towards known latents before a step ("posterior sampling", You et al. 2025).

    known: whose denoiser, the conditional one alone, estimates x0, and which says what of it is to
    be moved: the numbers that its form "quantile" would replace; learning_rate: 0.02 in
    NVS-Solver's examples. For `samplers.corrected`.

    With g the gradient by x of the mean of (x0 − F)² over those numbers, x becomes
    x − learning_rate·√σ·g/std(g), std over a whole film. As published the gradient passes the
    network's skip connection only: x0 = c_skip·x + …, so g is (x0 − F)·top times a factor, which
    the division removes. Where g is 0 nothing changes. Raises UndustError for a rate that is not
    finite or below 0.
    """

    known: LambdaGuidance
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.learning_rate < math.inf:
            raise UndustError(
                f"posterior sampling: a learning rate of {self.learning_rate} is not finite and 0 "
                "or above"
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Moves x [B, F, C, h, w] at σ [B]."""
        x0 = self.known.denoise(x, sigma)
        top = self.known.nearest(x0, sigma)
        off = (x0 - self.known.views.to(x0)).where(top, 0)
        deviation = off.flatten(1).std(1)
        scale = self.learning_rate * sigma.to(x).sqrt() / deviation
        return x - off * scale.where(deviation > 0, 0).reshape(-1, 1, 1, 1, 1)
