"""The generated pictures of an evaluation: in fixed batches, kept in a folder if one is given.

An evaluation that was stopped goes on with the pictures that are there, and several processes can
each sample a part of the batches. A processor may round differently for another batch, so a batch
is kept whole or sampled again: the pictures, and so the figures, are those of one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from undust.errors import UndustError
from undust.evaluation.pictures import in_unit_range
from undust.formats.recipe_png import read_recipe
from undust.generation import loop
from undust.pictures import from_image, read_image
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe

Observe = Callable[[int, int], None]
"""Called with the number of units of work that are done, and of all."""
ITS_BATCH = ("batch", "place")  # fields of a recipe that depend on its batch


def ignore(_done: int, _all: int) -> None:
    """Observes nothing."""


class SampledPictures:
    """The pictures of recipes, which differ in nothing that decides their size.

    folder: where they are kept as 000000.png, … with their recipes inside; None to keep none.
    """

    def __init__(
        self, model: LatentDiffusion, recipes: Sequence[Recipe], folder: Path | None = None
    ) -> None:
        self.model, self.folder = model, folder
        self.recipes = list(recipes)
        self.batches = list(loop.batches(model, recipes))
        self.starts = [0]
        for batch in self.batches:
            self.starts.append(self.starts[-1] + len(batch))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def steps(self) -> int:
        """The sampling steps of all pictures."""
        return sum(recipe.total_steps for recipe in self.recipes)

    def missing(self, part: tuple[int, int]) -> list[tuple[list[Recipe], list[Path]]]:
        """The batches of a part that are not in the folder yet, with their files.

        part: (k, n), every n-th batch from the k-th (from 1). Raises UndustError as `sample`.
        """
        folder, own = self._part(part)
        return [
            (self.batches[index], self._paths(index, folder))
            for index in own
            if not self._kept(index)
        ]

    def sample(self, part: tuple[int, int], observe: Observe = ignore) -> int:
        """Samples the batches of a part that are not in the folder yet.

        part: as for `missing`. Returns how many pictures the folder lacks after that. Raises
        UndustError for a part that does not exist, without a folder, and for a folder with other
        pictures.
        """
        _, own = self._part(part)
        total = sum(self._steps(index) for index in own)
        done = 0
        for index in own:
            if not self._kept(index):
                self._sampled(index, lambda steps, before=done: observe(before + steps, total))
            done += self._steps(index)
            observe(done, total)
        rest = [index for index in range(len(self.batches)) if index not in own]
        return sum(len(self.batches[index]) for index in rest if not self._kept(index))

    def _part(self, part: tuple[int, int]) -> tuple[Path, range]:
        """The folder, and the batches of a part."""
        which, count = part
        if not 1 <= which <= count:
            raise UndustError(f"part: {which}/{count} is not one of 1/{count} to {count}/{count}")
        if self.folder is None:
            raise UndustError("part: a folder is needed, where the parts come together")
        return self.folder, range(which - 1, len(self.batches), count)

    def pictures(self, observe: Observe = ignore) -> Iterator[tuple[range, Tensor]]:
        """The indices of the recipes of each batch, and its pictures [B,3,H,W] in [-1,1].

        Sampled unless they are in the folder, in which they are then kept. observe: called with
        numbers of steps. Raises UndustError for a folder with other pictures.
        """
        done = 0
        for index, batch in enumerate(self.batches):
            images = self._read(index) or self._sampled(
                index, lambda steps, before=done: observe(before + steps, self.steps)
            )
            done += self._steps(index)
            observe(done, self.steps)
            pixels = torch.stack([from_image(image, batch[0].final_size) for image in images])
            yield range(self.starts[index], self.starts[index + 1]), in_unit_range(pixels)

    def _read(self, index: int) -> list[Image.Image]:
        """The pictures of a batch in the folder; [] unless all are there and whole."""
        if self.folder is None or not self._kept(index):
            return []
        try:
            return [read_image(path) for path in self._paths(index, self.folder)]
        except UndustError:
            return []

    def _sampled(self, index: int, observe: Callable[[int], None]) -> list[Image.Image]:
        paths = None if self.folder is None else self._paths(index, self.folder)
        return sampled_batch(self.model, self.batches[index], paths, observe)

    def _steps(self, index: int) -> int:
        return sum(recipe.total_steps for recipe in self.batches[index])

    def _paths(self, index: int, folder: Path) -> list[Path]:
        places = range(self.starts[index], self.starts[index + 1])
        return [folder / f"{place:06}.png" for place in places]

    def _kept(self, index: int) -> bool:
        """Whether all pictures of a batch are in the folder, sampled in this batch."""
        return self.folder is not None and all(
            _is_of(path, recipe)
            for path, recipe in zip(
                self._paths(index, self.folder), self.batches[index], strict=True
            )
        )


def sampled_batch(
    model: LatentDiffusion,
    batch: Sequence[Recipe],
    paths: Sequence[Path] | None,
    observe: Callable[[int], None],
) -> list[Image.Image]:
    """The pictures of a batch, written to files with their recipes if there are paths.

    observe: called with the number of steps that are done, but not of all.
    """
    last = None
    for last in loop.sample_batch(model, batch):
        if last.index + 1 < last.total:
            observe((last.index + 1) * len(batch))
    if last is None:
        raise UndustError("a recipe without steps gives no picture")
    pictures = loop.decode(batch, last)
    for picture, path in zip(pictures, paths or (), strict=paths is not None):
        picture.save(path)
    return [picture.image for picture in pictures]


def _is_of(path: Path, recipe: Recipe) -> bool:
    """Whether a file is the picture of a recipe in the same batch; UndustError for another's."""
    if not path.exists():
        return False
    try:
        found = read_recipe(path)
    except UndustError:
        return False  # damaged
    wanted = json.loads(json.dumps(recipe.model_dump()))
    if found == wanted:
        return True
    own = (_without_batch(found), _without_batch(wanted))
    if own[0] == own[1]:
        return False  # of another number of pictures, which were batched in another way
    differing = next(key for key in (*own[1], *own[0]) if own[0].get(key) != own[1].get(key))
    raise UndustError(
        f"{path} is of another evaluation: its {differing} is {_short(own[0].get(differing))}, "
        f"not {_short(own[1].get(differing))}; choose another folder"
    )


def _without_batch(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in ITS_BATCH}


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
