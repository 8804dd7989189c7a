"""Films led by known views against films whose next frames are known: the use of a λ table.

    python benchmarks/known_views.py MODEL DATA [--steps 20] [--clips 20] [--depth-scale 1]
        [--out FILE]

DATA: `views` of examples/moving_pictures.py: of each held-out scene the true film, and its first
frame warped along the camera's path by a depth map that has an estimator's errors. Each way to use
the warped frames makes a film of each scene, all from the same noise; the true frames tell PSNR and
perceptual distance, a frame at a time, on all pixels, on the known ones and in the holes.
--depth-scale multiplies all estimated depths, as an estimator does that does not know the scale of
a scene: below 1 everything moves too far, and the known views are wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import undust
from undust.cli import console
from undust.conditioning.warp import Camera, latent_mask, warp
from undust.diffusion import lambda_tables
from undust.diffusion.guidance import (
    ClassifierFree,
    ConditionedDenoiser,
    Guidance,
    GuidedRun,
    LambdaGuidance,
)
from undust.diffusion.lambda_tables import LambdaTable
from undust.diffusion.noise import PictureNoise
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import sigmas
from undust.evaluation.metrics import psnr
from undust.evaluation.networks import FigureNetworks
from undust.formats.known_views import read_known_views
from undust.latent.video import unconditional
from undust.pictures import from_image, grid, read_image, to_images

FPS, MOTION = 7, 37  # the mean of the scenes' motion, as training told it
BASE = "plain inpainting"
Lead = Callable[[LambdaTable], LambdaTable]


@dataclass(frozen=True)
class Clip:
    """A held-out scene: its true frames, warped ones [F, 3, H, W] and masks [F, H, W].

    distances: of the cameras from the first [F].
    """

    true: Tensor
    warped: Tensor
    masks: Tensor
    distances: Tensor


@dataclass(frozen=True)
class Way:
    """A way to use known views: the table made from the searched one, None for none; its form."""

    lead: Lead | None
    form: Literal["quantile", "blend"] = "quantile"
    clamp: float = 0.2


def constant(table: LambdaTable) -> LambdaTable:
    """The mean weight everywhere."""
    return replace(table, weights=_but_first(table.weights).mean().expand_as(table.weights))


def by_level(table: LambdaTable) -> LambdaTable:
    """Of each noise level the mean over frames."""
    means = _but_first(table.weights).mean(1, keepdim=True)
    return replace(table, weights=means.expand_as(table.weights))


def by_frame(table: LambdaTable) -> LambdaTable:
    """Of each frame the mean over noise levels."""
    return replace(table, weights=table.weights.mean(0).expand_as(table.weights))


def everywhere(table: LambdaTable) -> LambdaTable:
    """λ = ∞: the known views in the place of the estimate."""
    return replace(table, weights=torch.ones_like(table.weights))


WAYS = {
    "no guidance": Way(None),
    BASE: Way(everywhere),
    "λ table, quantile": Way(lambda table: table),
    "λ table, blend": Way(lambda table: table, "blend"),
    "blend: constant": Way(constant, "blend", 0.0),
    "blend: by σ alone": Way(by_level, "blend", 0.0),
    "blend: by frame alone": Way(by_frame, "blend", 0.0),
    "blend: full": Way(lambda table: table, "blend", 0.0),
}


def _but_first(weights: Tensor) -> Tensor:
    return weights[:, 1:]


def read(folder: Path, depth_scale: float) -> Clip:
    """A scene of the data set."""
    cameras = json.loads((folder / "cameras.json").read_text())
    warped, masks = read_known_views(folder / "known")
    if depth_scale != 1:
        warped, masks = rewarped(folder, warped[0], cameras, depth_scale)
    paths = sorted((folder / "film").glob("frame-*.png"))[: len(warped)]
    size = warped.shape[3], warped.shape[2]
    true = torch.stack([from_image(read_image(path), size) for path in paths]).float() / 127.5 - 1
    places = torch.tensor(cameras["positions"], dtype=torch.float64)[: len(warped)]
    distances = lambda_tables.distances_along(places)
    return Clip(true, warped, masks, distances)


def rewarped(
    folder: Path, first: Tensor, cameras: dict[str, Any], scale: float
) -> tuple[Tensor, Tensor]:
    """The known views [F, 3, H, W] and masks [F, H, W] with the estimated depths scaled."""
    depth = torch.from_numpy(np.load(folder / "estimated-depth.npy")).double() * scale
    at = [
        Camera(
            cameras["focal"],
            tuple(cameras["centre"]),
            torch.tensor(rotation, dtype=torch.float64),
            torch.tensor(position, dtype=torch.float64),
        )
        for rotation, position in zip(cameras["rotations"], cameras["positions"], strict=True)
    ]
    pairs = [warp(first, depth, at[0], camera) for camera in at[1:]]
    views, masks = zip((first, torch.ones_like(depth, dtype=torch.bool)), *pairs, strict=True)
    return torch.stack(views), torch.stack(masks)


@torch.inference_mode()
def film(model: undust.VideoDiffusion, clip: Clip, way: Way, steps: int, seed: int) -> Tensor:
    """The frames [F, 3, H, W] that a way makes."""
    frames, _, height, width = clip.warped.shape
    first = clip.warped[:1]
    numbers = torch.tensor([[FPS - 1.0, MOTION, 0.02]])
    drawn = PictureNoise([seed], (frames, *model.latent_shape(width, height)))
    cond = model.condition(
        first, torch.randn(first.shape, generator=torch.manual_seed(seed)), numbers, frames
    )
    positive, negative = (
        ConditionedDenoiser(model.denoise, each) for each in (cond, unconditional(cond))
    )
    scale = torch.linspace(1.0, 1.5, frames)
    guided: Guidance = ClassifierFree(positive, negative, lambda _: scale)
    levels = sigmas("karras", model.process, steps)
    if way.lead is not None:
        table = way.lead(lambda_tables.search(levels, frames, distances=clip.distances))
        latents = model.first_stage.encode(clip.warped).mean
        masks = latent_mask(clip.masks, model.autoencoder.downsampling_factor).float()
        guided = LambdaGuidance(guided, table, latents, masks, way.form, way.clamp)
    x = model.process.start(drawn.start(), levels[0])
    *_, last = SAMPLERS["euler"](GuidedRun(guided), x, levels, drawn)
    return model.decode(last.x[0], 1)


def masked_psnr(x: Tensor, y: Tensor, where: Tensor) -> Tensor:
    """PSNR of each frame [F] on the pixels of a mask [F, H, W]; NaN without any."""
    error = ((x - y).square().mean(1) * where).sum((1, 2)) / where.sum((1, 2))
    return 10 * (4 / error).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--depth-scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="sheet of the first scenes, PNG")
    asked = parser.parse_args()
    model = undust.load_video(asked.model)
    perceptual = FigureNetworks.load(None, None, None, None).perceptual
    assert perceptual
    folders = sorted(asked.data.iterdir())[: asked.clips]
    clips = [read(folder, asked.depth_scale) for folder in folders]
    made: dict[str, list[Tensor]] = {}
    with console.counted("films", "made") as observe:
        for name, way in WAYS.items():
            for seed, clip in enumerate(clips):
                made.setdefault(name, []).append(film(model, clip, way, asked.steps, seed))
                observe(sum(map(len, made.values())), len(WAYS) * len(clips))
    made["warped frames themselves"] = [clip.warped for clip in clips]
    report(made, clips, perceptual)
    if asked.out:
        sheet(made, clips, asked.out)


def report(made: dict[str, list[Tensor]], clips: list[Clip], perceptual: torch.nn.Module) -> None:
    """Prints the tables."""
    figures: dict[str, Callable[[Tensor, Clip], Tensor]] = {
        "PSNR, dB": lambda x, clip: psnr(x, clip.true),
        "PSNR where the view is known, dB": lambda x, clip: masked_psnr(x, clip.true, clip.masks),
        "PSNR in the holes, dB": lambda x, clip: masked_psnr(x, clip.true, ~clip.masks),
        "perceptual distance": lambda x, clip: perceptual(x, clip.true),
    }
    for title, figure in figures.items():
        print(f"\n{title}: mean ± standard deviation over {len(clips)} films, by frame")
        frames = "".join(f"{frame:>13}" for frame in range(1, len(clips[0].true)))
        print(f"{'':28}{frames}{'all':>14}   against {BASE}, ± standard error")
        values = {name: _values(films, clips, figure) for name, films in made.items()}
        base = values[BASE].nanmean(1)
        for name, found in values.items():
            cells = "".join(_cell(frame[frame.isfinite()]) for frame in found.T)
            apart = found.nanmean(1) - base
            error = apart.std() / len(apart) ** 0.5
            print(f"{name:28}{cells} {_cell(found.nanmean(1))}   {apart.mean():+.3f} ± {error:.3f}")


@torch.inference_mode()
def _values(
    films: list[Tensor], clips: list[Clip], figure: Callable[[Tensor, Clip], Tensor]
) -> Tensor:
    """A figure of each film and frame but the first [films, F − 1]."""
    pairs = zip(films, clips, strict=True)
    return torch.stack([figure(x.clamp(-1, 1), clip) for x, clip in pairs])[:, 1:].double()


def _cell(values: Tensor) -> str:
    if len(values) < 2:
        return f"{'–':>13}"
    digits = 2 if values.mean().abs() > 1 else 4
    return f"{values.mean():>7.{digits}f}±{values.std():<5.{digits}f}"


def sheet(made: dict[str, list[Tensor]], clips: list[Clip], path: Path, shown: int = 3) -> None:
    """Saves the true and the made films of the first scenes, a row each."""
    rows = [
        image
        for place in range(min(shown, len(clips)))
        for films in ([clip.true for clip in clips], *made.values())
        for image in to_images(films[place])
    ]
    grid(rows, len(clips[0].true)).save(path)


if __name__ == "__main__":
    main()
