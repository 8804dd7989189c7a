"""A picture of a table of guidance strengths: log λ over noise level and frame, by Pillow."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from undust.diffusion.lambda_tables import LambdaTable
from undust.formats.files import atomic_write

WIDTH, HEIGHT = 560, 460  # px of the map, about
LEFT, TOP, RIGHT, BOTTOM = 92, 46, 110, 58  # margins
BAR = 18  # px, the width of the colour scale
FONT = 14  # px
APART = 20  # px between labels at least
DECADES = (-4, 6)  # of λ; others have the colours of the ends
# From λ = 10⁻⁴, nothing of the known view, over λ = 1, the half, to λ = 10⁶; blue and orange differ
# for colour-blind readers too.
LOW, MIDDLE, HIGH = (45, 80, 160), (247, 247, 247), (190, 85, 8)
KNOWN = (70, 70, 70)  # λ = ∞


def heat_map(table: LambdaTable) -> Image.Image:
    """Log λ as colours, noise levels downwards and frames to the right, with axes and a scale."""
    rows, columns = table.weights.shape
    across, down = max(1, round(WIDTH / columns)), max(1, round(HEIGHT / rows))
    cells = Image.fromarray(_colours(table.lambdas.double().log10().numpy()))
    cells = cells.resize((across * columns, down * rows), Image.Resampling.NEAREST)
    image = Image.new("RGB", (LEFT + cells.width + RIGHT, TOP + cells.height + BOTTOM), "white")
    image.paste(cells, (LEFT, TOP))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT)  # without Greek letters
    end = TOP + cells.height
    for row in range(0, rows, math.ceil(APART / down)):
        place = LEFT - 8, TOP + row * down + down / 2
        draw.text(place, f"{table.levels[row].item():.3g}", "black", font, "rm")
    for frame in range(0, columns, math.ceil(1.5 * APART / across)):
        draw.text((LEFT + frame * across + across / 2, end + 6), str(frame), "black", font, "mt")
    draw.text((LEFT + cells.width / 2, end + 32), "frame", "black", font, "mt")
    draw.text((8, TOP - 28), "noise level (sigma)", "black", font, "lt")
    _draw_scale(image, LEFT + cells.width + 26, font)
    return image


def write_heat_map(path: Path, table: LambdaTable) -> None:
    """Writes `heat_map` to a PNG file. Raises UndustError if that fails."""
    content = io.BytesIO()
    heat_map(table).save(content, "PNG", optimize=True)
    atomic_write(path, content.getvalue())


def _draw_scale(
    image: Image.Image, left: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """The colours of λ at the right, with a number at each decade that has the room."""
    draw = ImageDraw.Draw(image)
    low, high = DECADES
    height = image.height - TOP - BOTTOM - 34  # below it is the colour of known frames
    levels = np.linspace(high, low, height)[:, None].repeat(BAR, 1)
    image.paste(Image.fromarray(_colours(levels)), (left, TOP))
    draw.text((left, TOP - 28), "lambda", "black", font, "lt")
    for decade in range(low, high + 1, 2):
        place = TOP + (high - decade) / (high - low) * (height - 1)
        draw.line((left + BAR, place, left + BAR + 4, place), "black")
        draw.text((left + BAR + 8, place), f"{10.0**decade:g}", "black", font, "lm")
    known = image.height - BOTTOM - BAR
    draw.rectangle((left, known, left + BAR - 1, known + BAR - 1), KNOWN)
    draw.text((left + BAR + 8, known + BAR / 2), "known", "black", font, "lm")


def _colours(decades: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Bytes [..., 3] for log10 λ; each side of λ = 1 is linear in the logarithm."""
    low, high = DECADES
    numbers = torch.from_numpy(decades).clamp(low, high)[..., None]
    below, even, above = torch.tensor([LOW, MIDDLE, HIGH]).double()
    mixed = torch.where(
        numbers < 0,
        torch.lerp(even, below, numbers / low),
        torch.lerp(even, above, numbers / high),
    )
    known = torch.from_numpy(np.isposinf(decades))[..., None]
    return torch.where(known, torch.tensor(KNOWN).double(), mixed).round().byte().numpy()
