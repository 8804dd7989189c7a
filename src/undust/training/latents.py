"""Pictures of a data set as latents, made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from undust.formats import safetensors_file
from undust.networks.autoencoder import Autoencoder, Posterior
from undust.training.data import Pictures

TOGETHER = 32  # pictures encoded at once


@torch.no_grad()
def encode(autoencoder: Autoencoder, pictures: Pictures, which: Sequence[int]) -> Posterior:
    """The posterior of the pictures `which`: mean and log-variance [N, C, h, w]."""
    parts = [
        autoencoder.encode(pictures(which[start : start + TOGETHER]))
        for start in range(0, len(which), TOGETHER)
    ]
    return Posterior(
        torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts])
    )


class Latents:
    """The scaled latents of a whole data set, kept in a file of the run's folder.

    A resumed run reads the file, so that it goes on with the very same numbers. `made_of` names
    what they depend on; a file made of something else is made again.
    """

    def __init__(
        self, autoencoder: Autoencoder, pictures: Pictures, path: Path, made_of: object
    ) -> None:
        stamp = json.dumps(made_of)
        if path.is_file() and safetensors_file.header(path).metadata.get("made_of") == stamp:
            kept = safetensors_file.load(path)
        else:
            posterior = encode(autoencoder, pictures, range(len(pictures)))
            scale, shift = autoencoder.scale(posterior.mean)
            kept = {
                "mean": (posterior.mean - shift) * scale,
                "deviation": (0.5 * posterior.logvar).exp() * scale,
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            safetensors_file.save(path, kept, {"made_of": stamp})
        self.mean, self.deviation = kept["mean"], kept["deviation"]

    @property
    def shape(self) -> torch.Size:
        """(C, h, w) of one latent."""
        return self.mean.shape[1:]

    def sample(self, which: Sequence[int], noise: Tensor) -> Tensor:
        """Latents [B, C, h, w] of the pictures `which`, picked by unit normal noise like them."""
        picked = torch.tensor(which)
        return self.mean[picked] + self.deviation[picked] * noise
