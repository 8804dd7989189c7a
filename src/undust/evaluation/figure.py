"""One figure about a model, and its name: the only place that spells it."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, computed_field

from undust.networks.features.base import FeatureNetwork

# Published names belong to the published network: other networks give other numbers.
PUBLISHED = {
    "Fréchet distance": "FID",
    "Fréchet distance of reconstructions": "rFID",
    "kernel distance": "KID",
    "classifier score": "inception score",
}


class Figure(BaseModel):
    """A number, and everything that its name says.

    error: its standard error; unit: "dB", "%", or "" for none; features: the name of the network
    that it depends on; count, of: of how many pictures (or captions) and of which; references,
    among: of how many others they are compared with, and of which; size: width and height of all
    pictures; resizing: how the network resizes them, None if it does not; seed: of the first
    picture's noise, None without noise.
    """

    model_config = ConfigDict(frozen=True)

    quantity: str
    value: float
    error: float | None = None
    unit: str = ""
    features: str | None = None
    count: int
    of: str
    references: int | None = None
    among: str = "pictures"
    size: tuple[int, int]
    resizing: str | None = None
    seed: int | None = None

    @property
    def what(self) -> str:
        """The quantity, and the network that it depends on."""
        return self.quantity if self.features is None else f"{self.quantity}, {self.features}"

    @property
    def basis(self) -> str:
        """How many pictures, their size, how they are resized, and the seed."""
        against = "" if self.references is None else f" against {self.references} {self.among}"
        width, height = self.size
        parts = [f"{self.count} {self.of}{against}", f"{width}x{height}{self._resized}"]
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return ", ".join(parts)

    @computed_field
    @property
    def name(self) -> str:
        """The whole name; figures of different names are not comparable."""
        return f"{self.what}, {self.basis}"

    @property
    def shown(self) -> str:
        """The value with its unit, and its standard error if it is known."""
        if self.unit == "%":
            return f"{self.value:.1%}"
        if self.unit == "dB":
            return f"{self.value:.2f} dB"
        error = self.error
        if error is None or not math.isfinite(error):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ± {error:.1g}"

    @property
    def _resized(self) -> str:
        return "" if self.resizing is None else f" resized to {self.resizing}"


def with_features(quantity: str, network: FeatureNetwork) -> dict[str, str | None]:
    """The fields of a figure that depends on a network: quantity, features and resizing."""
    side = network.side
    return {
        "quantity": PUBLISHED.get(quantity, quantity) if network.published else quantity,
        "features": network.name,
        "resizing": None if side is None else f"{side}x{side} ({network.resizing})",
    }
