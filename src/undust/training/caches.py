"""The images of a data source: kept in memory, and as latents in a file of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.files import make_folder
from undust.latent.first_stage import FirstStage, Posterior
from undust.pictures import from_image
from undust.training.data import Observe
from undust.training.sources import DataSource

ENCODE_BATCH = 32  # images
READER_VERSION = 2  # raised when the same image file is read as other pixels than before


class ImageCache:
    """The images of a data source as bytes [3, size, size], kept in memory as far as they fit."""

    def __init__(self, source: DataSource, size: int, memory: int = 4 << 30) -> None:
        """memory: bytes to use at most."""
        self.source = source
        self.size = size
        self._capacity = memory // (3 * size * size)
        self._kept: dict[int, Tensor] = {}
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """The images [B, 3, size, size] in [-1, 1], float32; UndustError for a broken one."""
        images = torch.stack(list(self._readers.map(self._image, indices)))
        return images.float() / 127.5 - 1

    def preload(self, observe: Observe) -> None:
        """Decodes the images that memory has room for, so that a broken one is found at once."""
        count = min(self._capacity, len(self))
        for done, _ in enumerate(self._readers.map(self._image, range(count)), 1):
            observe(done, count)

    def _image(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        image = from_image(self.source.sample(index).image(), (self.size, self.size))
        if len(self._kept) < self._capacity:
            self._kept[index] = image
        return image


def in_batches(
    images: ImageCache, indices: Sequence[int], observe: Observe = lambda _done, _all: None
) -> Iterator[Tensor]:
    """The images at `indices`, [≤ENCODE_BATCH, 3, H, W] at a time.

    observe: called after each batch with the number of images done and of all.
    """
    for start in range(0, len(indices), ENCODE_BATCH):
        part = indices[start : start + ENCODE_BATCH]
        yield images(part)
        observe(start + len(part), len(indices))


class LatentCache:
    """The scaled latents of a whole data set, kept in a file of the run's folder.

    A resumed run reads the file, so that it continues with the same numbers. A file of other inputs
    or a damaged one is made again. note: says that a file was damaged, or "".
    """

    def __init__(
        self,
        first_stage: FirstStage,
        images: ImageCache,
        path: Path,
        made_of: Mapping[str, object],
        observe: Observe = lambda _done, _all: None,
        *,
        resumed: bool = False,
    ) -> None:
        """made_of: the inputs that the latents depend on; resumed: there is a checkpoint.

        observe: called with the number of images encoded and of all. Raises UndustError for broken
        images, and if the file of a resumed run is of other inputs.
        """
        stamp, self.note = json.dumps({**made_of, "reader": READER_VERSION}), ""
        stamps = (stamp, json.dumps(made_of)) if resumed else (stamp,)  # of earlier versions
        kept: dict[str, Tensor] = {}
        other = False
        if path.is_file():
            try:
                other = safetensors_file.header(path).metadata.get("made_of") not in stamps
                if not other:
                    kept = safetensors_file.load(path, names=("mean", "deviation"))
            except UndustError as error:
                self.note = f"the latents were made again: {error}"
        if other and resumed:
            raise UndustError(
                f"{path} was made from other pictures, with another first stage or at another "
                "data.size; set that back, or choose another --out"
            )
        if not kept:
            with torch.no_grad():
                every = range(len(images))
                parts = [first_stage.encode(x) for x in in_batches(images, every, observe)]
            kept = {
                "mean": torch.cat([part.mean for part in parts]),
                "deviation": torch.cat([part.deviation for part in parts]),
            }
            make_folder(path.parent)
            safetensors_file.save(path, kept, {"made_of": stamp})
        self.posterior = Posterior(kept["mean"], kept["deviation"])

    @property
    def shape(self) -> torch.Size:
        """(C, h, w) of one latent."""
        return self.posterior.mean.shape[1:]

    def sample(self, indices: Sequence[int], noise: Tensor) -> Tensor:
        """Latents [B, C, h, w] at `indices`, drawn from their posteriors with standard noise."""
        return self.posterior[torch.tensor(indices)].sample(noise)
