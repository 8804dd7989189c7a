"""Short films with real motion, made of photographs and emoji, with their cameras and depths.

    pip install scikit-image emoji
    python examples/moving_pictures.py --out data/motion-64 [--photographs DIR ...]

Each film shows up to four emoji before a photograph, a pattern or a gradient, on planes of other
depths, from a camera that pans, zooms, turns, moves, orbits or stands still; in a third of them an
emoji moves too. clips/ has the films as lossless WebP, metadata.jsonl their captions, frame rates
and motion, views/ scenes with true frames, depths, cameras and known views.

Emoji are from Noto Color Emoji (SIL Open Font License 1.1). Photographs are, by default, those of
scikit-image whose documentation says that they are CC0, in the public domain or without known
restrictions of copyright. docs/video/moving-pictures.md lists folders for --photographs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from emoji_set import EmojiRenderer
from moving_cameras import KINDS, REFERENCE
from moving_material import Material, SceneMaker, drawable_emoji, read_photographs
from moving_scenes import Rendered, render
from moving_views import ViewFigures, build_views
from PIL import Image

from undust.cli import console
from undust.errors import UndustError
from undust.formats.files import atomic_folder
from undust.pictures import to_images

FPS = 7
MOTION_UNITS = 32  # of the motion number, for a pixel per frame at 64 px
EVERY_TEST, EVERY_VALIDATION = 20, 50  # clips
SMALLEST = 16  # pixels of a film's side


def build(
    out: Path,
    material: Material,
    *,
    size: int = 64,
    frames: int = 12,
    clips: int = 3000,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[dict[str, str | int]]:
    """Writes the films into a folder; their rows of metadata.

    A film is a function of the seed, its number and the pictures. progress: called with (done,
    total). Raises UndustError for a missing font.
    """
    renderer = EmojiRenderer()
    makers = {
        held_out: SceneMaker(material.part(held_out=held_out), renderer, size, frames)
        for held_out in (False, True)
    }
    kinds = dict(zip(KINDS, (0.12, 0.1, 0.16, 0.12, 0.24, 0.2, 0.06), strict=True))
    (out / "clips").mkdir()
    rows: list[dict[str, str | int]] = []
    for index in range(clips):
        split = split_of(index)
        scene = makers[split == "test"].scene(np.random.default_rng([seed, index]), kinds)
        film = render(scene.layers, scene.cameras, size)
        name = f"clips/{index:06}.webp"
        write_webp(out / name, to_images(film.frames))
        rows.append(
            {
                "file_name": name,
                "text": scene.text,
                "fps": FPS,
                "motion": motion_number(film, size),
                "concept": scene.concept,
                "split": split,
            }
        )
        if progress:
            progress(index + 1, clips)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "metadata.jsonl").write_text("".join(lines), "utf-8")
    return rows


def split_of(index: int) -> str:
    """The split of a clip by its number: 5 % are for tests, 2 % for validation."""
    if index % EVERY_TEST == 7:
        return "test"
    return "validation" if index % EVERY_VALIDATION == 9 else "train"


def motion_number(film: Rendered, size: int) -> int:
    """The mean displacement, in 32nds of a pixel per frame at 64 px, at most 255."""
    return min(round(film.motion * REFERENCE / size * MOTION_UNITS), 255)


def write_webp(path: Path, frames: Sequence[Image.Image]) -> None:
    """Writes a lossless animation of 7 frames per second.

    WebP stores equal frames in succession as one. So that all are kept, one pixel of a frame that
    is equal to the one before differs by 1 of 255.
    """
    ends = [round(1000 * index / FPS) for index in range(len(frames) + 1)]
    different: list[Image.Image] = []
    for frame in frames:
        if different and frame.tobytes() == different[-1].tobytes():
            pixels = np.array(frame)
            pixels[0, 0, 2] ^= 1
            frame = Image.fromarray(pixels)
        different.append(frame)
    different[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=different[1:],
        duration=[after - before for before, after in pairwise(ends)],
        loop=0,
        lossless=True,
        quality=50,
        method=3,
    )


def main() -> None:
    """Builds the data set, with a progress bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to build it in")
    parser.add_argument(
        "--photographs", type=Path, nargs="+", default=[], help="folders of photographs"
    )
    for name, default, text in (
        ("size", 64, "width and height, pixels"),
        ("frames", 12, "of a clip"),
        ("clips", 3000, "number of films"),
        ("views", 20, "number of scenes with depths and cameras"),
        ("view-frames", 8, "of such a scene"),
        ("seed", 0, "of all random choices"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    options = parser.parse_args()
    made = {"size": options.size, "seed": options.seed}
    try:
        if options.size < SMALLEST or min(options.frames, options.view_frames) < 2:
            raise UndustError(
                f"--size is at least {SMALLEST}, --frames and --view-frames at least 2"
            )
        if min(options.clips, options.views, options.seed) < 0:
            raise UndustError("--clips, --views and --seed are not below 0")
        material = Material(read_photographs(options.photographs, options.size), drawable_emoji())
        with atomic_folder(options.out) as folder:
            with console.counted("clips", "making films") as observe:
                counts = {"frames": options.frames, "clips": options.clips}
                rows = build(folder, material, **counts, **made, progress=observe)
            with console.counted("views", "making views") as observe:
                counts = {"frames": options.view_frames, "views": options.views}
                figures = build_views(
                    folder / "views", material, **counts, **made, progress=observe
                )
    except UndustError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    motions = sorted(int(row["motion"]) / MOTION_UNITS for row in rows)
    print(f"{options.out}: {len(rows)} films, {len(figures)} views")
    print(f"{len(material.photographs)} photographs, {len(material.emoji)} emoji")
    if motions:
        low, middle, high = np.quantile(motions, [0.05, 0.5, 0.95])
        print(
            f"motion: median {middle:.1f} px per frame at 64 px, 90 % from {low:.1f} to {high:.1f}"
        )
    if figures:
        print(ViewFigures.summary(figures))


if __name__ == "__main__":
    main()
