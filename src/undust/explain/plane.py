"""Drawings in the plane: a density, arrows, paths and points, drawn large and reduced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from undust.explain.trace_pictures import HIGHLIGHT

FINE = 3  # drawn so many times larger, for smooth edges
DENSE = (70, 110, 180)  # at the maximum of a density; white at 0
ARROW, MODE, ESTIMATE = (55, 60, 75), (0, 0, 0), (255, 214, 120)
CELLS = 120  # of a density, along a side

Colour = tuple[int, int, int]


class Plane:
    """A square picture of the plane from −reach to reach; y points up.

    side: in pixels.
    """

    def __init__(self, reach: float, side: int) -> None:
        self._reach, self._side = reach, side
        self._image = Image.new("RGB", (side * FINE, side * FINE), "white")
        self._draw = ImageDraw.Draw(self._image)

    @property
    def image(self) -> Image.Image:
        """The drawing, reduced."""
        return self._image.resize((self._side, self._side), Image.Resampling.LANCZOS)

    def grid(self, count: int) -> Tensor:
        """Points [count², 2], float64, in the middles of cells."""
        line = ((torch.arange(count).double() + 0.5) / count * 2 - 1) * self._reach
        return torch.cartesian_prod(line, line)

    def density(self, log_density: Callable[[Tensor], Tensor]) -> None:
        """Shades the plane by the root of a density, as a share of its maximum."""
        values = log_density(self.grid(CELLS)).reshape(CELLS, CELLS).T.flip(0)
        share = ((values - values.max()) / 2).exp()[..., None]
        colours = torch.lerp(torch.full((3,), 255.0).double(), torch.tensor(DENSE).double(), share)
        shade = Image.fromarray(colours.round().byte().numpy())
        self._image.paste(shade.resize(self._image.size, Image.Resampling.BICUBIC))

    def arrow(self, start: Tensor, along: Tensor, colour: Colour = ARROW) -> None:
        """An arrow from a point [2] by a vector [2]."""
        (x0, y0), (x1, y1) = self._place(start), self._place(start + along)
        self._draw.line([x0, y0, x1, y1], colour, FINE)
        back = torch.tensor([x0 - x1, y0 - y1])
        back = back * min(4.0 * FINE, 0.6 * float(back.norm())) / back.norm().clamp_min(1e-9)
        side = torch.stack([-back[1], back[0]]) / 2
        tip = torch.tensor([x1, y1])
        ends = [tip, tip + back + side, tip + back - side]
        self._draw.polygon([(float(x), float(y)) for x, y in ends], colour)

    def path(self, points: Tensor, colour: Colour = HIGHLIGHT, width: int = 2) -> None:
        """A line through points [N, 2]."""
        self._draw.line([self._place(each) for each in points], colour, width * FINE, "curve")

    def points(
        self, points: Tensor, radius: float = 3, fill: Colour = HIGHLIGHT, edge: Colour = MODE
    ) -> None:
        """Discs at points [N, 2]; radius: in pixels."""
        for each in points:
            (x, y), r = self._place(each), radius * FINE
            self._draw.ellipse([x - r, y - r, x + r, y + r], fill, edge, FINE)

    def crosses(self, points: Tensor, colour: Colour = MODE, arm: float = 5) -> None:
        """Upright crosses at points [N, 2]; arm: in pixels."""
        for each in points:
            (x, y), r = self._place(each), arm * FINE
            self._draw.line([x - r, y, x + r, y], colour, 2 * FINE)
            self._draw.line([x, y - r, x, y + r], colour, 2 * FINE)

    def _place(self, point: Tensor) -> tuple[float, float]:
        scale = self._side * FINE / (2 * self._reach)
        x, y = point.tolist()
        return (x + self._reach) * scale, (self._reach - y) * scale
