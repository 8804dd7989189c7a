"""Guides that work on what the prompts came to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

from pydantic import Field, field_validator

from undust.diffusion.guidance import Away, DynamicThreshold, Interval, Rescaled
from undust.diffusion.prediction import PREDICTIONS
from undust.errors import UndustError
from undust.generation.guides.base import Guide, guide
from undust.networks.perturbation import BlurredQueries, IdentityMap

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise
    from undust.generation.scene import Scene
    from undust.latent.model import LatentModel


@guide("pag", "around")
class PAG(Guide):
    """Away from self-attention that sees only itself (Ahn et al. 2024).

    scale: how far; 0 is nothing.
    """

    scale: float = 3.0

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """Further away from what is asked for, badly seen."""
        worse = scene.asked(scene.asker(perturbed=IdentityMap()))
        return Away(denoise, scene.positive, worse, self.scale)


@guide("seg", "around")
class SEG(Guide):
    """Away from self-attention with blurred queries: smoothed energy (Hong 2024).

    scale: how far; blur: the deviation in pixels of the layer, infinite unless given.
    """

    scale: float = 3.0
    blur: float | None = Field(None, gt=0)

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """Further away from what is asked for, vaguely seen."""
        blurred = BlurredQueries(math.inf if self.blur is None else self.blur)
        worse = scene.asked(scene.asker(perturbed=blurred))
        return Away(denoise, scene.positive, worse, self.scale)


@guide("autoguidance", "around")
class Autoguidance(Guide):
    """Away from a worse model, such as one trained for a shorter time (Karras et al. 2024a).

    model: its name or folder; scale: how far, the paper's w less 1.
    """

    model: str
    model_hash: str = ""
    scale: float = 1.0

    def resolve(self, model: LatentModel, size: tuple[int, int]) -> Self:
        """Which model it is, to the last weight."""
        other = self._other(model)
        if other.latent_shape(*size) != model.latent_shape(*size):
            raise UndustError(f"guide autoguidance: {self.model} has latents of another shape")
        return self.model_copy(update={"model_hash": other.hash})

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """Further away from what the worse model makes of what is asked for."""
        worse = scene.asked(scene.asker(self._other(scene.model)))
        return Away(denoise, scene.positive, worse, self.scale)

    def _other(self, model: LatentModel) -> LatentModel:
        other = model.load_other(self.model)
        if self.model_hash not in ("", other.hash):
            raise UndustError(
                f"guide autoguidance: {self.model} is another model ({other.hash}) than it was "
                f"({self.model_hash})"
            )
        return other


@guide("rescale", "around")
class Rescale(Guide):
    """The contrast of the unguided output (Lin et al. 2024, §3.4).

    share: φ, how much of it; output: in which output it is measured, whatever the network's is.
    """

    share: float = Field(0.7, ge=0, le=1)
    output: str = "v_prediction"

    @field_validator("output")
    @classmethod
    def _known_output(cls, name: str) -> str:
        PREDICTIONS[name]
        return name

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """With the contrast of what is asked for."""
        return Rescaled(denoise, scene.positive, self.share, PREDICTIONS[self.output])


@guide("threshold", "around")
class Threshold(Guide):
    """Values out of range pulled in again: dynamic thresholding (Saharia et al. 2022).

    percentile: of the values' sizes, what counts as the range; limit: what the range may be
    (Imagen's is 1, for pixels; latents reach 3 and more).
    """

    percentile: float = Field(0.995, gt=0, le=1)
    limit: float = Field(3.0, gt=0)

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """With its estimates pulled in."""
        del scene
        return DynamicThreshold(denoise, self.percentile, self.limit)


@guide("interval", "around")
class InInterval(Guide):
    """No guidance but between two noise levels (Kynkäänniemi et al. 2024).

    It concerns the guidance scale and the guides given before it. low, high: σ.
    """

    low: float = Field(0.0, ge=0)
    high: float | None = Field(None, gt=0)

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """What is asked for, guided between the two."""
        high = math.inf if self.high is None else self.high
        return Interval(denoise, scene.positive, self.low, high)
