#!/usr/bin/env python3
"""Twelve drawings of one cup, purple with a yellow band: pictures for docs/training/.

.venv/bin/python examples/cups.py --out data/cups
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw

COUNT, SIZE = 12, 96
PURPLE, DARK, YELLOW = (120, 40, 200), (60, 10, 110), (250, 220, 60)


def cup(chance: random.Random) -> Image.Image:
    """The cup at a random place, in a random size."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    left, top = chance.randint(18, 30), chance.randint(22, 34)
    width, height = chance.randint(36, 44), chance.randint(36, 44)
    right, bottom, middle = left + width, top + height, top + height // 2
    draw.arc((right - 8, top + 8, right + 14, bottom - 8), -90, 90, DARK, 5)
    draw.rounded_rectangle((left, top, right, bottom), 6, PURPLE, DARK, 3)
    draw.rectangle((left + 4, middle - 4, right - 4, middle + 4), YELLOW)
    return image


def main() -> None:
    """Draws the pictures into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/cups"), help="folder of pictures")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    for number in range(COUNT):
        cup(chance).save(folder / f"{number:02}.png")


if __name__ == "__main__":
    main()
