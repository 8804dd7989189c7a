"""The images of a data source: kept in memory, and as latents in a file of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from undust.datasets.encoded import remaking
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.files import make_folder
from undust.latent.first_stage import FirstStage, Posterior
from undust.pictures import from_image
from undust.training.buckets import Size
from undust.training.data import CPU, Batch, Observe, RandomStream
from undust.training.sources import DataSample, DataSource, TrainingData
from undust.training.views import View

ENCODE_BATCH = 32  # images
SHARD = 32 * ENCODE_BATCH  # views in a file of several: whole batches, so that bits do not change
OTHERS = {
    "first_stage": "another first stage",
    "size": "another data.size",
    "pictures": "other pictures (data.limit, data.held_out and the splits choose them)",
    "views": "other views (data.buckets, data.max_ratio, data.crops or data.flip)",
}
CHECKED = 256  # latents whose deviation is judged
READER_VERSION = 2  # raised when the same image file is read as other pixels than before


class ImageCache:
    """Views of images as bytes [3, H, W], kept in memory as far as they fit."""

    def __init__(
        self,
        source: DataSource,
        memory: int = 4 << 30,
        read: Callable[[DataSample, View], Tensor] | None = None,
        device: torch.device = CPU,
    ) -> None:
        """memory: bytes to use at most; read: of a sample other bytes than those of its image.

        device: of the images that are returned.
        """
        self.source, self.device = source, device
        self._read = read or _pixels
        self._free = memory
        self._kept: dict[View, Tensor] = {}
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, views: Sequence[View]) -> Tensor:
        """The images [B, 3, H, W] in [-1, 1], float32; UndustError for a broken one.

        views: all of one size.
        """
        return self.bytes(views).to(self.device).float() / 127.5 - 1

    def bytes(self, views: Sequence[View]) -> Tensor:
        """The same as bytes."""
        return torch.stack(list(self._readers.map(self._image, views)))

    def preload(self, views: Sequence[View], observe: Observe) -> None:
        """Decodes the images that memory has room for, so that a broken one is found at once."""
        first, room = dict[View, None](), self._free
        for view in views:
            if view.flip:
                continue
            room -= 3 * view.size[0] * view.size[1]
            if room < 0:
                break
            first[view] = None
        for done, _ in enumerate(self._readers.map(self._image, first), 1):
            observe(done, len(first))

    def _image(self, view: View) -> Tensor:
        whole = view._replace(flip=False)
        image = self._kept.get(whole)
        if image is None:
            image = self._read(self.source.sample(view.sample), whole)
            if image.nbytes <= self._free:
                self._free -= image.nbytes
                self._kept[whole] = image
        return image.flip(-1) if view.flip else image


def _pixels(sample: DataSample, view: View) -> Tensor:
    return from_image(sample.image(), view.size, view.place)


def in_batches(
    images: Callable[[Sequence[View]], Tensor],
    views: Sequence[View],
    observe: Observe = lambda _done, _all: None,
) -> Iterator[Tensor]:
    """The images of views, [≤ENCODE_BATCH, 3, H, W] at a time.

    observe: called after each batch with the number of images done and of all.
    """
    for start in range(0, len(views), ENCODE_BATCH):
        part = views[start : start + ENCODE_BATCH]
        yield images(part)
        observe(start + len(part), len(views))


def all_views(data: TrainingData) -> list[View]:
    """The views of the pictures trained on, then of those held out."""
    return [view for k in (*data.train, *data.held_out) for view in data.views.of(k)]


class PixelLatents:
    """Images in the place of latents, for diffusion in pixel space."""

    def __init__(self, data: TrainingData, observe: Observe) -> None:
        """observe: as `ImageCache.preload`."""
        self._images, self.views = ImageCache(data.source), data.views
        self._images.preload(all_views(data), observe)
        self.notes: list[str] = []

    def sample(self, batch: Batch) -> Tensor:
        """The images [B, 3, H, W] of a batch."""
        return self._images(self.views.drawn(batch))


class LatentCache:
    """The scaled latents of a run's images, kept in files of the run's folder.

    A resumed run reads the files, so that it continues with the same numbers. Files of other inputs
    and damaged ones are made again; those of encoded data are only read. A file has the tensors
    "mean" and "deviation" of the square views, and others such as "mean 80x48", their rows in the
    order of the views. Many views are in several files, each of one size, so that an interrupted
    encoding continues. notes: a line for each damaged file.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        data: TrainingData,
        out: Path,
        made_of: Mapping[str, object],
        observe: Observe = lambda _done, _all: None,
        *,
        resumed: bool = False,
    ) -> None:
        """made_of: the inputs that the latents depend on, beside the images and their views.

        resumed: there is a checkpoint. observe: called with the number of images encoded and of
        all. Raises UndustError for broken images, and if the training latents of a resumed run or
        encoded data are of other inputs.
        """
        self.notes: list[str] = []
        self._first_stage, self.views = first_stage, data.views
        self._images = ImageCache(data.source, memory=0)
        self._rows: dict[View, tuple[Tensor, Tensor, int]] = {}
        train, held_out = (
            [view for k in part for view in data.views.of(k)]
            for part in (data.train, data.held_out)
        )
        count, digests = len(train) + len(held_out), data.image_digests

        def observe_part(now: int, _: int) -> None:
            observe(now, count)

        def observe_rest(now: int, _: int) -> None:
            observe(len(train) + now, count)

        self._encoded_data = data.encoded
        folder = data.encoded or out
        path = folder / "latents.safetensors"
        stamp = {**made_of, "pictures": digests[0]}
        self._part(path, train, stamp, observe_part, resumed=resumed)
        if held_out:
            path, stamp = folder / "held-out-latents.safetensors", {**stamp, "pictures": digests[1]}
            self._part(path, held_out, stamp, observe_rest, resumed=False)

    def sample(self, batch: Batch) -> Tensor:
        """Latents [B, C, h, w] of a batch, drawn from their posteriors."""
        posterior = self.posterior(self.views.drawn(batch))
        shape = posterior.mean.shape[1:]
        return posterior.sample(batch.normal(RandomStream.POSTERIOR, shape))

    def posterior(self, views: Sequence[View]) -> Posterior:
        """The posterior [B, C, h, w] of views of one size."""
        rows = [self._rows[view] for view in views]
        return Posterior(
            torch.stack([mean[row] for mean, _, row in rows]),
            torch.stack([deviation[row] for _, deviation, row in rows]),
        )

    @property
    def checked(self) -> Posterior:
        """The posteriors of some views, each number by itself, to judge their deviation."""
        rows = [*self._rows.values()]
        some = rows[:: max(1, len(rows) // CHECKED)]
        mean = torch.cat([mean[row].flatten() for mean, _, row in some])
        return Posterior(mean, torch.cat([deviation[row].flatten() for _, deviation, row in some]))

    def _part(
        self,
        path: Path,
        views: Sequence[View],
        made_of: Mapping[str, object],
        observe: Observe,
        *,
        resumed: bool,
    ) -> None:
        """Reads the latents of some views from a file, or makes it."""
        by_size: dict[Size, list[View]] = {}
        for view in views:
            by_size.setdefault(view.size, []).append(view)
        if len(views) > len({view.sample for view in views}) or [*by_size] != [self.views.square]:
            shown = json.dumps([[view.size, view.place, view.flip] for view in views])
            made_of = {**made_of, "views": sha256(shown.encode()).hexdigest()}
        files = [(path, by_size, made_of)]
        if len(views) > SHARD and not self._is_whole(path, made_of, resumed=resumed):
            parts = [
                {size: own[start : start + SHARD]}
                for size, own in by_size.items()
                for start in range(0, len(own), SHARD)
            ]
            files = [
                (path.with_stem(f"{path.stem}-{k:05}"), part, {**made_of, "part": k})
                for k, part in enumerate(parts)
            ]
        done = 0
        for file, part, stamp in files:

            def observe_file(now: int, _: int, done: int = done) -> None:
                observe(done + now, 0)

            found = self._read(file, stamp, [*part], resumed=resumed)
            if found is None:
                found = self._encoded(part, observe_file)
                make_folder(file.parent)
                safetensors_file.save(file, found, {"made_of": _stamp(stamp)})
            for size, own in part.items():
                mean, deviation = (found[name] for name in self._names(size))
                self._rows |= {view: (mean, deviation, row) for row, view in enumerate(own)}
                done += len(own)

    def _is_whole(self, path: Path, made_of: Mapping[str, object], *, resumed: bool) -> bool:
        """Whether one file has all views, as in earlier versions."""
        if not path.is_file():
            return False
        try:
            return resumed or safetensors_file.header(path).metadata["made_of"] == _stamp(made_of)
        except (UndustError, KeyError):
            return False

    def _read(
        self, path: Path, made_of: Mapping[str, object], sizes: Sequence[Size], *, resumed: bool
    ) -> dict[str, Tensor] | None:
        """The tensors of a file; None if there is none, or one of other inputs."""
        names = [name for size in sizes for name in self._names(size)]
        if self._encoded_data:
            with remaking():
                given = safetensors_file.header(path).metadata.get("made_of", "{}")
            _check_encoded(path, given, made_of)
            with remaking():
                return safetensors_file.load(path, names=names)
        if not path.is_file():
            return None
        stamps = [_stamp(made_of)]
        if resumed:
            stamps.append(json.dumps(made_of))  # of earlier versions
        try:
            if safetensors_file.header(path).metadata.get("made_of") in stamps:
                return safetensors_file.load(path, names=names)
        except UndustError as error:
            self.notes.append(f"the latents were made again: {error}")
        else:
            if resumed:
                raise UndustError(
                    f"{path} was made from other pictures, with another first stage or at "
                    "another data.size; set that back, or choose another --out"
                )
        return None

    @torch.no_grad()
    def _encoded(
        self, by_size: Mapping[Size, Sequence[View]], observe: Observe
    ) -> dict[str, Tensor]:
        """Mean and deviation of all views of each size."""
        found, done = dict[str, Tensor](), 0
        for size, views in by_size.items():

            def observe_size(now: int, _: int, done: int = done) -> None:
                observe(done + now, 0)

            encoded = [
                self._first_stage.encode(x) for x in in_batches(self._images, views, observe_size)
            ]
            mean, deviation = self._names(size)
            found[mean] = torch.cat([part.mean for part in encoded])
            found[deviation] = torch.cat([part.deviation for part in encoded])
            done += len(views)
        return found

    def _names(self, size: Size) -> tuple[str, str]:
        """The names of the two tensors of a size."""
        suffix = "" if size == self.views.square else f" {size[0]}x{size[1]}"
        return f"mean{suffix}", f"deviation{suffix}"


def _check_encoded(path: Path, text: str, made_of: Mapping[str, object]) -> None:
    """Raises UndustError for latents of encoded data that are of other inputs.

    text: JSON of the inputs that they are of.
    """
    try:
        given: object = json.loads(text)
    except (ValueError, RecursionError):
        given = {}
    now: dict[str, object] = json.loads(_stamp(made_of))
    before = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    for key in (*now, *before):
        if now.get(key) != before.get(key):
            raise UndustError(
                f"{path} was encoded with {OTHERS.get(key, 'another version')}: undust data encode "
                "encodes the pictures with this recipe"
            )


def _stamp(made_of: Mapping[str, object]) -> str:
    return json.dumps({**made_of, "reader": READER_VERSION})
