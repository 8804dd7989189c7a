"""Pictures of a data set as latents, made once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.files import make_folder
from undust.latent.first_stage import FirstStage, Posterior
from undust.training.data import ImageCache, Observe

MAX_BATCH = 32  # pictures encoded at once
READER = 2  # raised when a picture file is read as other pixels than before


def in_batches(
    pictures: ImageCache, which: Sequence[int], observe: Observe = lambda _done, _all: None
) -> Iterator[Tensor]:
    """The pictures `which`, [≤MAX_BATCH, 3, H, W] at a time.

    observe: told after each batch the number of pictures done and of all.
    """
    for start in range(0, len(which), MAX_BATCH):
        part = which[start : start + MAX_BATCH]
        yield pictures(part)
        observe(start + len(part), len(which))


class LatentCache:
    """The scaled latents of a whole data set, kept in a file of the run's folder.

    A resumed run reads the file, so that it goes on with the very same numbers. `made_of` names
    what they depend on; a file made of something else is made again, and so is a damaged one:
    `note` then says so, or is "".
    """

    def __init__(
        self,
        first_stage: FirstStage,
        pictures: ImageCache,
        path: Path,
        made_of: Mapping[str, object],
        observe: Observe = lambda _done, _all: None,
        *,
        resumed: bool = False,
    ) -> None:
        """observe: told how many pictures of all are encoded; resumed: there is a checkpoint.

        Raises UndustError for broken pictures, and if a resumed run's file is made of others.
        """
        stamp, self.note = json.dumps({**made_of, "reader": READER}), ""
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
                f"{path} was made of other pictures, of another first stage or at another "
                "data.size; set that back, or choose another --out"
            )
        if not kept:
            with torch.no_grad():
                every = range(len(pictures))
                parts = [first_stage.encode(x) for x in in_batches(pictures, every, observe)]
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

    def sample(self, which: Sequence[int], noise: Tensor) -> Tensor:
        """Latents [B, C, h, w] of the pictures `which`, picked by unit normal noise like them."""
        return self.posterior[torch.tensor(which)].sample(noise)
