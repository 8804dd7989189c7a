"""Tux Paint's stamps as a data set: photographs and drawings with English and Korean captions.

    python examples/stamps.py --out data/stamps-64 [--stamps /usr/share/tuxpaint/stamps]

They are of Debian's package tuxpaint-stamps-default, under the GPL 2. Cartoons, mirrored twins and
symbols are left out; a tenth is held out, by the SHA-256 of the name.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from PIL import Image

from undust.cli import console
from undust.datasets import image_folder
from undust.errors import UndustError
from undust.formats.files import make_folder

STAMPS = Path("/usr/share/tuxpaint/stamps")
LEFT_OUT = ("cartoon", "symbols", "mirror", "flip")
KOREAN = "ko.utf8="
MARGIN = 1 / 32  # of the side, around the stamp


def captions(path: Path) -> dict[str, str]:
    """The captions of a stamp's text file: English in its first line, languages in the others."""
    lines = path.read_text("utf-8", errors="replace").splitlines()
    found = {"text": lines[0].strip().rstrip(".!")} if lines else {}
    for line in lines[1:]:
        if line.startswith(KOREAN):
            found["text_ko"] = line.removeprefix(KOREAN).strip().rstrip(".!")
    return {name: text for name, text in found.items() if text}


def on_white(picture: Image.Image, size: int) -> Image.Image:
    """The stamp in the middle of a white square."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    side = size - 2 * round(MARGIN * size)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (size, size), "white")
    corner = ((size - picture.width) // 2, (size - picture.height) // 2)
    square.alpha_composite(picture, corner)
    return square.convert("RGB")


def build(stamps: Path, out: Path, size: int) -> int:
    """Writes the pictures and their metadata; the number of pictures.

    Raises UndustError if there are no stamps, or `out` is not empty.
    """
    paths = [
        path
        for path in sorted(stamps.rglob("*.png"))
        if path.with_suffix(".txt").is_file()
        and not any(part in str(path.relative_to(stamps)) for part in LEFT_OUT)
    ]
    if not paths:
        raise UndustError(f"{stamps} has no stamps; `apt install tuxpaint-stamps-default` has them")
    if out.exists() and any(out.iterdir()):
        raise UndustError(f"{out} is not empty")
    make_folder(out)
    rows: list[dict[str, str]] = []
    with console.counted("pictures", "reading stamps") as observe:
        for done, path in enumerate(paths, 1):
            name = "-".join(path.relative_to(stamps).parts)
            with Image.open(path) as picture:
                on_white(picture, size).save(out / name)
            held_out = int(hashlib.sha256(path.stem.encode()).hexdigest(), 16) % 10 == 0
            split = "test" if held_out else "train"
            rows.append({"file_name": name, **captions(path.with_suffix(".txt")), "split": split})
            observe(done, len(paths))
    image_folder.write(out, rows)
    return len(rows)


def main() -> None:
    """Builds the data set, with a progress bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to build it in")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of the stamps")
    parser.add_argument("--size", type=int, default=64, help="width and height, pixels")
    options = parser.parse_args()
    try:
        count = build(options.stamps, options.out, options.size)
    except (UndustError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(f"{options.out}: {count} pictures")


if __name__ == "__main__":
    main()
