"""The README's pictures of the built-in model, made by the commands that stand there.

python examples/readme_pictures.py --out docs/pictures
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from undust.pictures import grid

PROMPTS = (
    "a smiling cat", "빨간 하트", "a picture of a rocket", "a smiling face with sunglasses",
    "a red car", "강아지 얼굴", "the flag of South Korea", "a guitar",
    "a ghost", "해바라기 그림", "a robot", "a house",
    "mermaid: medium skin tone", "woman lifting weights: medium-dark skin tone",
    "call me hand: light skin tone", "pilot: medium-dark skin tone",
)  # fmt: skip
FACE = (16, 16, 52, 60)  # the ellipse of the mask, pixels


class Commands:
    """Runs undust in a folder and opens the pictures that it writes there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *arguments: str) -> None:
        """Runs one command."""
        command = [sys.executable, "-m", "undust", *arguments]
        subprocess.run(command, cwd=self._folder, check=True)

    def generated(self, name: str, prompt: str, *options: str) -> Image.Image:
        """The picture of a prompt, written as `name`."""
        self("generate", prompt, *options, "--out", name)
        return self.opened(name)

    def opened(self, name: str) -> Image.Image:
        """A picture of the folder."""
        with Image.open(self._folder / name) as picture:
            return picture.convert("RGB")


def sheet(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """The pictures side by side, of twice their size."""
    twice = [
        each.resize((2 * each.width, 2 * each.height), Image.Resampling.BICUBIC)
        for each in pictures
    ]
    return grid(twice, columns or len(twice), gap=8)


def main() -> None:
    """Writes the four pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        run = Commands(Path(folder))
        sheet([run.generated("one.png", p, "--seed", "1") for p in PROMPTS], 4).save(
            out / "emoji.png"
        )

        cat = run.generated("cat.png", "a smiling cat", "--seed", "1")
        mask = Image.new("L", cat.size)
        ImageDraw.Draw(mask).ellipse(FACE, fill="white")
        mask.save(Path(folder) / "face.png")
        from_cat = ("--init", "cat.png", "--seed", "3")
        bears = [
            run.generated("bear.png", "a bear", *from_cat, "--strength", strength)
            for strength in ("0.3", "0.45", "0.6")
        ]
        crying = run.generated("crying.png", "a crying cat", *from_cat, "--mask", "face.png")
        beside = run.generated("beside.png", "a dog", *from_cat, "--extend", "0,0,64,0")
        wide = Image.new("RGB", (8 + 6 * 136 + 264, 144), "white")
        wide.paste(sheet([cat, *bears, mask.convert("RGB"), crying]), (0, 0))
        wide.paste(sheet([beside]), (6 * 136, 0))
        wide.save(out / "over.png")

        run("invert", "cat.png", "a smiling cat", "--out", "noise.safetensors")
        again = ("--noise", "noise.safetensors", "--sampler", "euler", "--guidance", "1")
        sheet([cat, run.generated("crying.png", "a crying cat", *again)]).save(
            out / "inversion.png"
        )
        run(
            "interpolate",
            "a smiling cat",
            "red heart",
            "--seed",
            "1",
            "--count",
            "7",
            "--out",
            "way",
        )
        way = [run.opened(f"way/{p.name}") for p in sorted((Path(folder) / "way").glob("a-*.png"))]
        sheet(way).save(out / "interpolation.png")


if __name__ == "__main__":
    main()
