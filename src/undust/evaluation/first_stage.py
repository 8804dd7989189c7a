"""Figures of a first stage: the error of its reconstructions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from undust.evaluation.distributions import frechet_distance
from undust.evaluation.figure import Figure, with_features
from undust.evaluation.metrics import psnr, ssim
from undust.evaluation.networks import AT_ONCE, FeatureSet, FigureNetworks
from undust.evaluation.pictures import PictureSet, in_unit_range
from undust.latent.first_stage import FirstStage
from undust.networks.base import FirstStageNetwork
from undust.networks.features.base import FeatureNetwork


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


@torch.inference_mode()
def first_stage_figures(
    autoencoder: FirstStageNetwork,
    pictures: PictureSet,
    networks: FigureNetworks | None = None,
    observe: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Figure]:
    """PSNR, SSIM, perceptual distance and Fréchet distance of reconstructions from mean latents.

    observe: called with the number of pictures that are done, and of all.
    """
    networks = networks or FigureNetworks()
    perceptual, features = networks.perceptual, networks.features
    before, after = (FeatureSet(features) if features else None for _ in range(2))
    terms: dict[str, list[Tensor]] = {}
    done = 0
    for batch in pictures.batches():
        x = in_unit_range(batch)
        y = reconstruct(autoencoder, x)
        terms.setdefault("PSNR", []).append(psnr(x, y))
        terms.setdefault("SSIM", []).append(ssim(x, y))
        if perceptual:
            place = next(perceptual.features.parameters(), x).device
            together = max(1, AT_ONCE // x[0, 0].numel())
            for ours, theirs in zip(x.split(together), y.split(together), strict=True):
                distances = perceptual(ours.to(place), theirs.to(place)).cpu()
                terms.setdefault("perceptual", []).append(distances)
        if before and after:
            before.add(x)
            after.add(y)
        done += len(x)
        observe(done, len(pictures))

    def figure(name: str, value: float, network: FeatureNetwork | None = None) -> Figure:
        fields = with_features(name, network) if network else {"quantity": name}
        return Figure.model_validate(
            {
                **fields,
                "value": value,
                "unit": "dB" if name == "PSNR" else "",
                "count": len(pictures),
                "of": pictures.of,
                "size": pictures.size,
            }
        )

    means = {name: float(torch.cat(parts).mean()) for name, parts in terms.items()}
    found = [figure(name, means[name]) for name in ("PSNR", "SSIM")]
    if perceptual:
        shown = figure(perceptual.kind, means["perceptual"])
        found.append(shown.model_copy(update={"features": perceptual.features.name}))
    if before and after and len(pictures) > 1:
        distance = frechet_distance(before.pooled, after.pooled)
        found.append(figure("Fréchet distance of reconstructions", distance, before.network))
    return found


def reconstruction(figures: list[Figure]) -> Reconstruction:
    """PSNR and SSIM among the figures of a first stage."""
    values = {figure.quantity: figure.value for figure in figures}
    return Reconstruction(pictures=figures[0].count, psnr=values["PSNR"], ssim=values["SSIM"])
