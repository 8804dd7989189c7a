"""Measures whether models under every kind of condition obey it.

    python examples/emoji_set.py --out data/emoji-64 --size 64
    python examples/emoji_maps.py data/emoji-64 --out data/emoji-maps-64
    undust train recipes/emoji-class-diffusion.toml        # and so on
    python benchmarks/conditions.py data/emoji-maps-64 --out runs --kinds class

Held-out pictures give the conditions. Each number is measured on the pictures that were generated
for their own condition and, to compare, on the same pictures with the conditions of others. Prints
rows of the tables of docs/training/ and writes their pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import undust
from undust.datasets import image_folder
from undust.datasets.samples import Sample
from undust.evaluation.agreement import edge_f_measure
from undust.pictures import from_image, grid, to_images
from undust.pipeline import LatentDiffusion

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from emoji_maps import colour_class, depth, edges, segmented

SIZE, SHOWN, COUNT = 64, 8, 48
SMALL = {"low-resolution": 8, "super-resolution": 16}  # pixels of the conditions
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
KINDS = (
    "unconditional",
    "class",
    "text",
    "segmentation",
    "depth",
    "edges",
    "inpainting",
    "low-resolution",
    "super-resolution",
    "class-and-segmentation",
)
"""Those of the recipes `emoji-KIND-diffusion.toml`."""


def condition(kind: str, sample: Sample) -> tuple[str, dict[str, Any], Image.Image | None]:
    """A prompt, the options of a request, and a picture of the condition, of one sample."""
    image = sample.image().convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    if kind == "text":
        return sample.captions["text"], {}, None
    if side := SMALL.get(kind):
        small = image.resize((side, side), Image.Resampling.LANCZOS)
        return "", {"init": small, "noise_level": 10}, small.resize((SIZE, SIZE), 0)
    if kind == "inpainting":
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, (SIZE // 2, 0, SIZE, SIZE))
        seen = Image.composite(Image.new("RGB", image.size, "grey"), image, mask)
        return "", {"init": image, "mask": mask}, seen
    options: dict[str, Any] = {}
    shown = None
    if "class" in kind:
        options["label"] = sample.columns["colour"]
    for name in ("segmentation", "depth", "edges"):
        if name in kind:
            shown = sample.beside(name).convert("RGB")
            options["maps"] = [shown]
    return "", options, shown


def agreement(kind: str, made: np.ndarray, sample: Sample) -> float:
    """How well a picture [H, W, 3] of bytes agrees with the condition of a sample."""
    wanted = from_image(sample.image(), (SIZE, SIZE)).permute(1, 2, 0).numpy()
    match kind:
        case "class":
            return float(colour_class(made) == sample.columns["colour"])
        case "depth":
            return float(np.corrcoef(depth(made).ravel(), depth(wanted).ravel())[0, 1])
        case "edges":
            found, given = (torch.from_numpy(edges(each))[None, None] for each in (made, wanted))
            return float(edge_f_measure(found, given))
        case "low-resolution" | "super-resolution":
            small = (SMALL[kind], SMALL[kind])
            one, other = (
                np.asarray(Image.fromarray(each).resize(small, Image.Resampling.LANCZOS))
                for each in (made, wanted)
            )
            return psnr(one, other)
        case "inpainting":
            return psnr(made[:, SIZE // 2 :], wanted[:, SIZE // 2 :])
        case "text":
            return psnr(made, wanted)
        case _:
            return float((segmented(made) == segmented(wanted)).mean())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels."""
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


MEASURES = {
    "class": "share whose main colour is the class",
    "text": "PSNR to the caption's picture, dB",
    "segmentation": "share of pixels of the segmentation's class",
    "depth": "correlation of the depth",
    "edges": "F-measure of edges, a pixel apart at most",
    "low-resolution": "PSNR to the condition at 8×8, dB",
    "super-resolution": "PSNR to the condition at 16×16, dB",
    "inpainting": "PSNR of the hidden half to the original, dB",
}


def measured(
    kind: str, model: LatentDiffusion, samples: Sequence[Sample]
) -> tuple[dict[str, tuple[float, float]], Image.Image]:
    """For each condition the agreement with its own and the next sample's; a sheet of pictures."""
    made: list[np.ndarray] = []
    sheet: list[list[Image.Image]] = []
    for seed, sample in enumerate(samples):
        prompt, options, shown = condition(kind, sample)
        options |= {"seed": seed, "steps": 20}
        [picture] = model.generate([prompt] if prompt else [], **options)
        made.append(np.asarray(picture.image))
        column = [shown] if shown else []
        original = to_images(from_image(sample.image(), (SIZE, SIZE))[None] / 127.5 - 1)
        sheet.append(
            [*column, picture.image, *original] if kind != "unconditional" else [picture.image]
        )
    found: dict[str, tuple[float, float]] = {}
    for name in (name for name in kind.split("-and-") if name in MEASURES):
        own, other = (
            [agreement(name, each, sample) for each, sample in zip(made, given, strict=True)]
            for given in (samples, [*samples[1:], samples[0]])
        )
        found[name] = float(np.mean(own)), float(np.mean(other))
    rows = [image for row in zip(*sheet[:SHOWN], strict=True) for image in row]
    return found, grid(rows, SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    samples = [each for each in image_folder.read(options.data) if each.split != "train"][:COUNT]
    for kind in options.kinds:
        model = undust.load(options.out / f"emoji-{kind}-diffusion" / "model")
        found, sheet = measured(kind, model, samples)
        sheet.save(PICTURES / f"condition-{kind}.png")
        for name, (own, other) in found.items():
            print(f"| {kind} | {MEASURES[name]} | {own:.2f} | {other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
