"""Caption recall: is what was painted nearest to the picture that was asked for?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from undust.evaluation.metrics import WINDOW, smooth
from undust.pictures import from_image, read_image

SIDE = 32  # pixels
NEARNESS = (
    f"Euclidean distance of the pictures on white, averaged to {SIDE}x{SIDE} pixels RGB and "
    "smoothed by a Gaussian of 1.5 of these; pictures equal to the bit count as one"
)


def features(pictures: Tensor) -> Tensor:
    """What pictures [B, 3, H, W] are compared by: their smoothed miniatures, flat [B, 3·32·32].

    Plain pixels, so that no network, least of all the model's own, judges its own work. Smoothing
    forgives a shape that lies beside its place: of reconstructed emoji that were blurred, shifted
    by 3 %, scaled by 4 % and 10 % off in contrast, this finds 71 % (64×64 pixels as they are: 40 %,
    16×16 averages: 61 %).
    """
    small = F.adaptive_avg_pool2d(pictures.float(), SIDE)
    return smooth(F.pad(small, (WINDOW // 2,) * 4, mode="replicate")).flatten(1)


class ReferenceSet:
    """The distinct pictures of a data set, among which painted ones are recognised.

    `number` of a path says which of the distinct pictures it is; files with the same pixels at
    `size` (width, height) have the same number.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.number: dict[Path, int] = {}
        seen: dict[bytes, int] = {}
        rows: list[Tensor] = []
        for path in paths:
            picture = from_image(read_image(path), size)
            digest = hashlib.sha256(picture.numpy().data).digest()
            if digest not in seen:
                seen[digest] = len(seen)
                rows.append(features(picture[None] / 127.5 - 1))
            self.number[path] = seen[digest]
        self._features = torch.cat(rows)

    def __len__(self) -> int:
        return len(self._features)

    def ranks(self, painted: Tensor, wanted: Sequence[Path]) -> list[int]:
        """For each picture [B, 3, H, W] how many of the gallery are nearer to it than the wanted.

        0 says that none is: the wanted picture is the nearest.
        """
        distances = torch.cdist(
            features(painted), self._features, compute_mode="donot_use_mm_for_euclid_dist"
        )
        right = torch.tensor([[self.number[path]] for path in wanted])
        return (distances < distances.gather(1, right)).sum(1).tolist()
