"""The same 40 prompts and seeds by several models, one below the other.

    python benchmarks/side_by_side.py MODEL [MODEL ...] --out sheet.png

Ten prompts a row; below each row of the first model are those of the others. The prompts are names
of emoji, phrases, compositions that the built-in model has not seen, and Korean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from PIL import Image

import undust
from undust.pictures import grid

COLUMNS = 10
PROMPTS = (
    "a smiling cat", "a dog", "a red car", "a green heart", "an astronaut",
    "a slice of pizza", "a guitar", "the flag of South Korea", "a house", "a rocket",
    "smiling face with sunglasses", "crying face", "a ghost", "a robot", "a sunflower",
    "an octopus", "a bicycle", "a hamburger", "a birthday cake", "a butterfly",
    "woman scientist: medium skin tone", "thumbs up: dark skin tone", "man: red hair", "a wizard",
    "person surfing: light skin tone", "a picture of a rocket", "the moon", "a volcano",
    "a cup of coffee", "an umbrella",
    "웃는 고양이", "빨간 하트", "해바라기 그림", "강아지", "축구공", "사과", "기차", "무지개",
    "눈사람", "태극기",
)  # fmt: skip


def pictures(model: str) -> Iterator[Image.Image]:
    """The pictures of the prompts, in their order, each with the seed of its number."""
    loaded = undust.load(model)
    for seed, prompt in enumerate(PROMPTS):
        yield loaded.generate(prompt, seed=seed)[0].image


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names, folders or checkpoint files")
    parser.add_argument("--out", required=True, help="the sheet, a .png")
    options = parser.parse_args()
    drawn = [list(pictures(model)) for model in options.models]
    rows = range(0, len(PROMPTS), COLUMNS)
    grid(
        [each for row in rows for own in drawn for each in own[row : row + COLUMNS]], COLUMNS
    ).save(options.out)


if __name__ == "__main__":
    main()
