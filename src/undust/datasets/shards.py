"""Data sets in several files: brace patterns, and splits in the names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from undust.datasets.samples import SPLITS, Split
from undust.errors import UndustError

MOST = 100_000  # files of one pattern
BRACES = re.compile(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}")
PARTS = re.compile(r"[-._ 0-9/]+")  # between the words of a file's name
NUMBERED = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(\.[^.]+)$")


def expand(pattern: Path) -> list[Path]:
    """The paths of a pattern: {000..015} is a range of numbers, {a,b} a choice.

    Raises UndustError for more than `MOST`.
    """
    found = [str(pattern)]
    while BRACES.search(found[0]):
        again = (each for text in found for each in _choices(text))
        found = [*islice(again, MOST + 1)]
        if len(found) > MOST:
            raise UndustError(f"{pattern} stands for more than {MOST:,} files")
    return [Path(text) for text in found]


def splits(paths: Sequence[Path], folder: Path) -> list[Split]:
    """The split of each file, by the words in its name or in those of its folders.

    folder: above which names have no meaning. All are "train" unless one of them says so.
    """
    below = (path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths)
    found: list[Split] = [_split(path) or "train" for path in below]
    return found if "train" in found else list[Split](("train",)) * len(found)


def absent(paths: Sequence[Path]) -> list[str]:
    """The names of missing files of series such as train-00000-of-00003.parquet."""
    names = {str(path) for path in paths}
    missing: dict[str, None] = {}
    for name in sorted(names):
        if match := NUMBERED.match(name):
            start, _, count, ending = match.groups()
            for number in range(min(int(count), MOST)):
                other = f"{start}-{number:05}-of-{count}{ending}"
                if other not in names:
                    missing[Path(other).name] = None
    return [*missing]


def _choices(text: str) -> list[str]:
    match = BRACES.search(text)
    if not match:
        return [text]
    first, last, names = match.groups()
    if names is not None:
        choices = names.split(",")
    else:
        start, stop = int(first), int(last)
        step = 1 if stop >= start else -1
        numbers = range(start, stop + step, step)
        choices = [f"{number:0{len(first)}}" for number in numbers[: MOST + 1]]
    return [text[: match.start()] + choice + text[match.end() :] for choice in choices]


def _split(path: Path) -> Split | None:
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in PARTS.split(part.lower().replace("_", "-")):
            if word in SPLITS:
                return SPLITS[word]
    return None
