"""Pairs of pictures and maps in parallel folders: images/a.jpg and depth/a.png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from undust.datasets.samples import SPLITS

IMAGES = ("images", "image", "pictures")  # names of the folder that has the pictures


@dataclass
class Pairs:
    """The result of `paired`.

    maps: picture → its maps by column, the name of the maps' folder. unpaired: maps without a
    picture.
    """

    maps: dict[Path, dict[str, Path]] = field(default_factory=dict[Path, dict[str, Path]])
    unpaired: list[Path] = field(default_factory=list[Path])

    @property
    def taken(self) -> set[Path]:
        """The pictures that are maps."""
        return {path for maps in self.maps.values() for path in maps.values()} | {*self.unpaired}


def paired(root: Path, pictures: Sequence[Path]) -> Pairs:
    """The pairs among the pictures of a data set.

    The folder of the pictures has one of the names `IMAGES`, beside it or in each split's folder
    are those of maps: others in which at least half of the pictures have the name, but for the
    extension, of one there.
    """
    folders: dict[Path, dict[str, dict[Path, Path]]] = {}  # base → folder → name → picture
    for path in pictures:
        parts = path.parts[len(root.parts) :]
        depth = 1 if len(parts) > 2 and parts[0].lower() in SPLITS else 0
        if len(parts) > depth + 1:
            base = root.joinpath(*parts[:depth])
            inside = Path(*parts[depth + 1 :]).with_suffix("")
            folders.setdefault(base, {}).setdefault(parts[depth], {})[inside] = path
    found = Pairs()
    for within in folders.values():
        name = next((name for name in within if name.lower() in IMAGES), None)
        if name is None:
            continue
        images = within.pop(name)
        for column, maps in within.items():
            if 2 * len(maps.keys() & images.keys()) < len(maps) or column.lower() in SPLITS:
                continue
            found.unpaired += [path for key, path in maps.items() if key not in images]
            for key in maps.keys() & images.keys():
                found.maps.setdefault(images[key], {})[column] = maps[key]
    return found
