"""Folders of known views: a film's warped frames with masks, to be looked at, edited and read.

Frame τ is view-τ.png (or .jpg) and mask-τ.png (or .npy), τ with four digits from 0000. A mask is
white, or 1, where the view is known. Other files in the folder are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undust.errors import UndustError
from undust.formats.files import atomic_folder
from undust.formats.npy_files import read_array
from undust.pictures import from_image, grey, read_image, to_images, upright_size

MAX_FRAMES = 1024
MAX_PIXELS = 2**28  # of all frames together
LIMIT = 2**27  # bytes of a .npy mask
WHITE = 128  # the least grey of a known pixel, of 255
SUFFIXES = {"view": ("png", "jpg", "jpeg"), "mask": ("png", "npy")}


def read_known_views(folder: Path, frames: int | None = None) -> tuple[Tensor, Tensor]:
    """A film's views [F, 3, H, W] in [-1, 1] and where they are known, bool [F, H, W].

    frames: how many the film has, by default as many as the folder. Raises UndustError, which names
    the file, for a missing frame, view or mask, one too many, sizes that differ, masks of other
    numbers than 0 and 1 (.npy), and what is not readable or too large.
    """
    paths = view_files(folder, frames)
    width, height = size = _common_size(folder, paths)
    pictures = torch.empty(len(paths), 3, height, width)
    known = torch.empty(len(paths), height, width, dtype=torch.bool)
    for frame, (image, where) in enumerate(_each(paths, size)):
        pictures[frame], known[frame] = from_image(image, size).float() / 127.5 - 1, where
    return pictures, known


def check_known_views(folder: Path, frames: int | None = None) -> None:
    """Raises UndustError where `read_known_views` does; keeps one frame at a time."""
    paths = view_files(folder, frames)
    for _ in _each(paths, _common_size(folder, paths)):
        pass


def write_known_views(folder: Path, views: Tensor, masks: Tensor, *, replace: bool = False) -> None:
    """Writes a film's views [F, 3, H, W] in [-1, 1] and masks [F, H, W] to a new folder, at once.

    Colours are rounded to 8 bits; masks come back as they were. replace: whether the folder may
    have something in it, which is then removed. Raises UndustError for other shapes, and as
    `atomic_folder` does.
    """
    if views.ndim != 4 or views.shape[1] != 3 or masks.shape != views[:, 0].shape:
        raise UndustError(
            f"known views: {[*views.shape]} with masks {[*masks.shape]}; they are [F, 3, H, W] and "
            "[F, H, W]"
        )
    if not 1 <= len(views) <= MAX_FRAMES:
        raise UndustError(f"known views: {len(views)} frames; 1 to {MAX_FRAMES} can be written")
    with atomic_folder(folder, replace=replace) as building:
        for frame, (view, mask) in enumerate(zip(views, masks, strict=True)):
            to_images(view[None])[0].save(building / f"view-{frame:04d}.png")
            white = (mask != 0).cpu().numpy().astype(np.uint8) * 255
            Image.fromarray(white).save(building / f"mask-{frame:04d}.png")


def view_files(folder: Path, frames: int | None = None) -> list[tuple[Path, Path]]:
    """The files of each frame's view and mask; frames and errors as of `read_known_views`."""
    found: dict[str, dict[int, Path]] = {"view": {}, "mask": {}}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UndustError(f"{folder} cannot be read as a folder: {error.strerror}") from error
    for path in entries:
        named = re.fullmatch(r"(view|mask)-(.*)\.([A-Za-z]+)", path.name)
        if named is None:
            continue
        kind, number, suffix = named[1], named[2], named[3].lower()
        if not re.fullmatch(r"[0-9]{4}", number) or suffix not in SUFFIXES[kind]:
            raise UndustError(
                f"{path} is no name of a {kind}; {kind}-0000 has four digits and ends in "
                f".{' or .'.join(SUFFIXES[kind])}"
            )
        if (other := found[kind].setdefault(int(number), path)) != path:
            raise UndustError(f"{folder} has both {other.name} and {path.name}; one is needed")
    last = max([-1, *found["view"], *found["mask"]])
    count = last + 1 if frames is None else frames
    if not 1 <= count <= MAX_FRAMES:
        raise UndustError(
            f"{folder}: {count} frames; views and masks of 1 to {MAX_FRAMES} can be read"
        )
    for kind, numbered in found.items():
        missing = [frame for frame in range(count) if frame not in numbered]
        if missing:
            raise UndustError(
                f"{folder} has no {kind}-{missing[0]:04d}; each of {count} frames needs a view and "
                "a mask"
            )
        if len(numbered) > count:
            extra = numbered[max(numbered)].name
            raise UndustError(f"{folder} has {extra}, and the film only {count} frames")
    return [(found["view"][frame], found["mask"][frame]) for frame in range(count)]


def _common_size(folder: Path, paths: Sequence[tuple[Path, Path]]) -> tuple[int, int]:
    """Width and height of the first view. Raises UndustError if so many are too large."""
    width, height = size = upright_size(paths[0][0])
    if width * height * len(paths) > MAX_PIXELS:
        raise UndustError(
            f"{folder}: {len(paths)} frames of {_sides(size)} are too many pixels; "
            f"{MAX_PIXELS:,} together are the most"
        )
    return size


def _each(
    paths: Sequence[tuple[Path, Path]], size: tuple[int, int]
) -> Iterator[tuple[Image.Image, Tensor]]:
    """Each view, and where it is known, bool [H, W]. Raises UndustError for another size."""
    for view, mask in paths:
        image = read_image(view)
        if image.size != size:
            first = paths[0][0]
            raise UndustError(f"{view} has {_sides(image.size)}, and {first} {_sides(size)}")
        where = _mask(mask)
        if (sides := (where.shape[1], where.shape[0])) != size:
            raise UndustError(f"{mask} has {_sides(sides)}, and {view} {_sides(size)}")
        yield image, where


def _mask(path: Path) -> Tensor:
    """Where a view is known, bool [H, W]."""
    if path.suffix.lower() != ".npy":
        return torch.from_numpy(np.array(grey(read_image(path))) >= WHITE)
    numbers = read_array(path, LIMIT, "fiub")
    if numbers.ndim != 2:
        raise UndustError(f"{path}: its shape is {[*numbers.shape]}; a mask is [H, W]")
    if not bool(((numbers == 0) | (numbers == 1)).all()):
        raise UndustError(f"{path}: a mask is 1 where the view is known, and else 0")
    return numbers == 1


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
