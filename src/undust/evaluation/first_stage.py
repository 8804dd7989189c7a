"""The reconstruction error of the first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from undust.evaluation.metrics import psnr, ssim
from undust.latent.first_stage import FirstStage
from undust.networks.base import FirstStageNetwork
from undust.pictures import from_image, read_image

MAX_BATCH_PIXELS = 4 * 512 * 512  # pixels encoded in one batch


class Reconstruction(BaseModel):
    """Mean PSNR (dB) and mean SSIM of pictures and their reconstructions."""

    model_config = ConfigDict(frozen=True)

    pictures: int
    psnr: float
    ssim: float


@torch.inference_mode()
def reconstruct(autoencoder: FirstStageNetwork, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] encoded to their mean latents and decoded, clipped."""
    stage = FirstStage(autoencoder)
    return stage.decode(stage.encode(pictures).mean).cpu().clamp(-1, 1)


def measure(
    autoencoder: FirstStageNetwork, paths: Sequence[Path], size: tuple[int, int]
) -> Reconstruction:
    """Means over picture files read at `size` (width, height)."""
    together = max(1, MAX_BATCH_PIXELS // (size[0] * size[1]))
    ratios: list[Tensor] = []
    likenesses: list[Tensor] = []
    for start in range(0, len(paths), together):
        part = paths[start : start + together]
        x = torch.stack([from_image(read_image(path), size) for path in part]) / 127.5 - 1
        y = reconstruct(autoencoder, x)
        ratios.append(psnr(x, y))
        likenesses.append(ssim(x, y))
    return Reconstruction(
        pictures=len(paths),
        psnr=float(torch.cat(ratios).mean()),
        ssim=float(torch.cat(likenesses).mean()),
    )
