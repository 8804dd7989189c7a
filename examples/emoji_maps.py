"""Maps and classes for a data set of emoji, so that every kind of condition can be trained on it.

    python examples/emoji_maps.py data/emoji-64 --out data/emoji-maps-64

For each picture a segmentation into eight colours, its edges (Canny 1986), and a map of depth: how
far inside its outline each pixel is, as if the emoji were a cushion. The class is the colour that
most of the picture has.
All are made from the pixels, so that a generated picture can be compared with its condition.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from undust.cli import console
from undust.conditioning.canny import canny_edges
from undust.datasets import image_folder
from undust.pictures import from_image

COLOURS = {
    "white": (255, 255, 255),
    "black": (40, 40, 40),
    "grey": (150, 155, 160),
    "red": (220, 50, 45),
    "yellow": (253, 205, 60),
    "brown": (140, 90, 60),
    "green": (90, 160, 60),
    "blue": (50, 120, 200),
}
_RGB = np.array([*COLOURS.values()], float)
_BACKGROUND = 0  # white, around the emoji
_FAR = 8  # pixels from the outline at 64 px, where the depth is highest


def segmented(pixels: np.ndarray) -> np.ndarray:
    """The number of the nearest colour [H, W] of each pixel of a picture [H, W, 3] of bytes."""
    apart = np.square(pixels[:, :, None].astype(float) - _RGB).sum(-1)
    return apart.argmin(-1)


def depth(pixels: np.ndarray) -> np.ndarray:
    """How far inside its outline each pixel of a picture on white is, 0 to 1 [H, W]."""
    inside = (pixels.astype(float).min(-1) < 250).astype(float)
    far = max(1, _FAR * len(pixels) // 64)
    layers = inside.copy()
    for _ in range(far - 1):
        around = np.pad(inside, 1)
        moved = [around[1:-1, :-2], around[1:-1, 2:], around[:-2, 1:-1], around[2:, 1:-1]]
        inside = np.minimum(inside, np.minimum.reduce(moved))
        layers += inside
    return layers / far


def edges(pixels: np.ndarray) -> np.ndarray:
    """Whether each pixel of a picture [H, W, 3] of bytes is one of an edge [H, W]."""
    return canny_edges(Image.fromarray(pixels))[0].bool().numpy()


def colour_class(pixels: np.ndarray) -> str | None:
    """The colour of most of a picture but its background; None if there is only that."""
    counts = np.bincount(segmented(pixels).ravel(), minlength=len(COLOURS))
    counts[_BACKGROUND] = 0
    return [*COLOURS][counts.argmax()] if counts.any() else None


def build(source: Path, out: Path) -> int:
    """Writes the pictures with their maps and the metadata; the number of pictures."""
    samples = image_folder.read(source)
    for name in ("pictures", "segmentation", "depth", "edges"):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    with console.counted("pictures", "drawing maps") as observe:
        for done, sample in enumerate(samples, 1):
            image, name = sample.image(), sample.path.name
            pixels = from_image(image, image.size).permute(1, 2, 0).numpy()
            colours = _RGB[segmented(pixels)].astype(np.uint8)
            Image.fromarray(colours).save(out / "segmentation" / name)
            grey = (255 * depth(pixels)).round().astype(np.uint8)
            Image.fromarray(grey).save(out / "depth" / name)
            Image.fromarray(255 * edges(pixels).astype(np.uint8)).save(out / "edges" / name)
            shutil.copyfile(sample.path, out / "pictures" / name)
            rows.append(
                {
                    **sample.captions,
                    "file_name": f"pictures/{name}",
                    "segmentation": f"segmentation/{name}",
                    "depth": f"depth/{name}",
                    "edges": f"edges/{name}",
                    "colour": colour_class(pixels) or "white",
                    "concept": sample.group,
                    "split": sample.split,
                }
            )
            observe(done, len(samples))
    image_folder.write(out, rows)
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(f"{build(options.source, options.out)} pictures with maps in {options.out}")
