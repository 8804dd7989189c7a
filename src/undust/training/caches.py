"""The images of a data source: kept in memory, and as latents in a file of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.files import make_folder
from undust.latent.first_stage import FirstStage, Posterior
from undust.pictures import from_image
from undust.training.data import CPU, Batch, Observe, RandomStream
from undust.training.sources import DataSample, DataSource, TrainingData

ENCODE_BATCH = 32  # images
READER_VERSION = 2  # raised when the same image file is read as other pixels than before


class ImageCache:
    """The images of a data source as bytes [3, size, size], kept in memory as far as they fit."""

    def __init__(
        self,
        source: DataSource,
        size: int,
        memory: int = 4 << 30,
        read: Callable[[DataSample], Tensor] | None = None,
        device: torch.device = CPU,
    ) -> None:
        """memory: bytes to use at most; read: of a sample other bytes than those of its image.

        device: of the images that are returned.
        """
        self.source, self.device = source, device
        self.size = size
        self._read = read or self._pixels
        self._capacity = memory // (3 * size * size)
        self._kept: dict[int, Tensor] = {}
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """The images [B, 3, size, size] in [-1, 1], float32; UndustError for a broken one."""
        return self.bytes(indices).to(self.device).float() / 127.5 - 1

    def bytes(self, indices: Sequence[int]) -> Tensor:
        """The same as bytes."""
        return torch.stack(list(self._readers.map(self._image, indices)))

    def preload(self, indices: Sequence[int], observe: Observe) -> None:
        """Decodes the images that memory has room for, so that a broken one is found at once."""
        first = indices[: self._capacity]
        for done, _ in enumerate(self._readers.map(self._image, first), 1):
            observe(done, len(first))

    def _pixels(self, sample: DataSample) -> Tensor:
        return from_image(sample.image(), (self.size, self.size))

    def _image(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        image = self._read(self.source.sample(index))
        if len(self._kept) < self._capacity:
            self._kept[index] = image
        return image


def in_batches(
    images: Callable[[Sequence[int]], Tensor],
    indices: Sequence[int],
    observe: Observe = lambda _done, _all: None,
) -> Iterator[Tensor]:
    """The images at `indices`, [≤ENCODE_BATCH, 3, H, W] at a time.

    observe: called after each batch with the number of images done and of all.
    """
    for start in range(0, len(indices), ENCODE_BATCH):
        part = indices[start : start + ENCODE_BATCH]
        yield images(part)
        observe(start + len(part), len(indices))


class PixelLatents:
    """Images in the place of latents, for diffusion in pixel space."""

    def __init__(self, data: TrainingData, size: int, observe: Observe) -> None:
        """size: of the images, pixels; observe: as `ImageCache.preload`."""
        self._images = ImageCache(data.source, size)
        self._images.preload([*data.train, *data.held_out], observe)
        self.notes: list[str] = []

    def sample(self, batch: Batch) -> Tensor:
        """The images [B, 3, H, W] of a batch."""
        return self._images(batch.sample)


class LatentCache:
    """The scaled latents of a run's images, kept in files of the run's folder.

    A resumed run reads the files, so that it continues with the same numbers. Files of other inputs
    and damaged ones are made again. notes: a line for each damaged file.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        data: TrainingData,
        size: int,
        out: Path,
        made_of: Mapping[str, object],
        observe: Observe = lambda _done, _all: None,
        *,
        resumed: bool = False,
    ) -> None:
        """size: of the images; made_of: the other inputs that the latents depend on.

        resumed: there is a checkpoint. observe: called with the number of images encoded and of
        all. Raises UndustError for broken images, and if the training latents of a resumed run are
        of other inputs.
        """
        self.notes: list[str] = []
        self._first_stage = first_stage
        self._images = ImageCache(data.source, size, memory=0)
        train, held_out = data.image_digests
        stamp = {**made_of, "pictures": train}
        count = len(data.train) + len(data.held_out)

        def part(name: str, indices: Sequence[int], done: int, *, resumed: bool) -> None:
            def observe_part(now: int, _: int) -> None:
                observe(done + now, count)

            parts.append(self._part(out / name, indices, stamp, observe_part, resumed=resumed))

        parts: list[dict[str, Tensor]] = []
        part("latents.safetensors", data.train, 0, resumed=resumed)
        if data.held_out:
            stamp["pictures"] = held_out
            part("held-out-latents.safetensors", data.held_out, len(data.train), resumed=False)
        mean, deviation = (
            torch.cat([part[name] for part in parts]) for name in ("mean", "deviation")
        )
        self.posterior = Posterior(mean, deviation)
        self._rows = {index: row for row, index in enumerate([*data.train, *data.held_out])}

    def sample(self, batch: Batch) -> Tensor:
        """Latents [B, C, h, w] of a batch, drawn from their posteriors."""
        rows = [self._rows[index] for index in batch.sample]
        posterior = self.posterior[torch.tensor(rows)]
        shape = posterior.mean.shape[1:]
        return posterior.sample(batch.normal(RandomStream.POSTERIOR, shape))

    def _part(
        self,
        path: Path,
        indices: Sequence[int],
        made_of: Mapping[str, object],
        observe: Observe,
        *,
        resumed: bool,
    ) -> dict[str, Tensor]:
        """Mean and deviation of some images' latents, from a file or for it."""
        stamp = json.dumps({**made_of, "reader": READER_VERSION})
        stamps = (stamp, json.dumps(made_of)) if resumed else (stamp,)  # of earlier versions
        if path.is_file():
            try:
                if safetensors_file.header(path).metadata.get("made_of") in stamps:
                    return safetensors_file.load(path, names=("mean", "deviation"))
            except UndustError as error:
                self.notes.append(f"the latents were made again: {error}")
            else:
                if resumed:
                    raise UndustError(
                        f"{path} was made from other pictures, with another first stage or at "
                        "another data.size; set that back, or choose another --out"
                    )
        with torch.no_grad():
            encoded = [
                self._first_stage.encode(x) for x in in_batches(self._images, indices, observe)
            ]
        kept = {
            "mean": torch.cat([part.mean for part in encoded]),
            "deviation": torch.cat([part.deviation for part in encoded]),
        }
        make_folder(path.parent)
        safetensors_file.save(path, kept, {"made_of": stamp})
        return kept
