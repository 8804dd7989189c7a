"""Scenes with true frames, depths and cameras, and known views warped from an estimated depth map.

Each is a folder: film/ has the true frames, depth.npy the true depths of frame 0 (float32 [H, W],
along z), estimated-depth.npy the same with the errors of an estimator, cameras.json the cameras,
and known/ the views that `undust.conditioning.warp` makes of frame 0 by the estimated depths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from emoji_set import EmojiRenderer
from moving_material import Material, SceneMaker
from moving_scenes import Rendered, render
from torch import Tensor
from torch.nn import functional as F

from undust.conditioning.warp import Camera, warp
from undust.errors import UndustError
from undust.evaluation.metrics import psnr
from undust.formats.film import frame_name
from undust.formats.known_views import write_known_views
from undust.pictures import to_images

KINDS = {"parallax": 1.0, "orbit": 1.0}
HOLES = (0.1, 0.35)  # least and greatest share in the last frame
ATTEMPTS = 200  # to draw a scene with such a share
DEVIATION = 0.12  # of the logarithm of estimated depths
SMOOTH = 6  # random numbers along each side, of a smooth field
EDGE = 0.7  # pixels by which edges are moved (deviation) and blurred
STEP = 0.1  # ratio of depths in 5×5 pixels from which they are an edge


@dataclass(frozen=True)
class ViewFigures:
    """How well the warped views show the true frames.

    true, estimated: PSNR in dB of known pixels away from edges in frames 1 to F−1, by the true and
    the estimated depths; holes: the share of unknown pixels in the last frame.
    """

    true: float
    estimated: float
    holes: float

    @staticmethod
    def summary(figures: Sequence[ViewFigures]) -> str:
        """The means and ranges over several scenes, as a line."""
        true, estimated, holes = np.array([(f.true, f.estimated, f.holes) for f in figures]).T
        return (
            f"warped by true depths {true.mean():.1f} dB ({true.min():.1f} to {true.max():.1f}), "
            f"by estimated ones {estimated.mean():.1f} dB; holes in the last frame "
            f"{holes.mean():.0%} ({holes.min():.0%} to {holes.max():.0%})"
        )


def build_views(
    out: Path,
    material: Material,
    *,
    size: int = 64,
    frames: int = 8,
    views: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[ViewFigures]:
    """Writes the scenes into a new folder; the figures of each.

    The scenes are of photographs and emoji for tests. One whose last frame has too few or too many
    holes is drawn again. progress: called with (done, total). Raises UndustError if no scene is
    found, and for a missing font.
    """
    maker = SceneMaker(material.part(held_out=True), EmojiRenderer(), size, frames)
    out.mkdir()
    figures: list[ViewFigures] = []
    for index in range(views):
        rng = np.random.default_rng([seed, index, 1])
        figures.append(_build_view(out / f"{index:02}", maker, rng))
        if progress:
            progress(index + 1, views)
    return figures


def _build_view(folder: Path, maker: SceneMaker, rng: np.random.Generator) -> ViewFigures:
    for _ in range(ATTEMPTS):
        factor = float(rng.uniform(1, 2))
        scene = maker.scene(rng, KINDS, moving=0, least=2, factor=factor)
        cameras = scene.cameras
        film = render(scene.layers, cameras, maker.size)
        estimated = estimated_depth(film.depths[0], rng)
        views, masks = _warped(film.frames[0], estimated, cameras)
        holes = 1 - float(masks[-1].double().mean())
        if HOLES[0] <= holes <= HOLES[1]:
            break
    else:
        raise UndustError(
            f"views: none of {ATTEMPTS} scenes has {HOLES[0]:.0%} to {HOLES[1]:.0%} of holes; "
            "more frames or other seeds have"
        )
    folder.mkdir()
    (folder / "film").mkdir()
    for index, picture in enumerate(to_images(film.frames)):
        picture.save(folder / "film" / frame_name(index))
    np.save(folder / "depth.npy", film.depths[0].float().numpy())
    np.save(folder / "estimated-depth.npy", estimated.float().numpy())
    (folder / "cameras.json").write_text(json.dumps(_as_json(scene.text, cameras), indent=1))
    write_known_views(folder / "known", views, masks)
    true = agreement(film, *_warped(film.frames[0], film.depths[0], cameras))
    return ViewFigures(true, agreement(film, views, masks), holes)


def estimated_depth(depth: Tensor, rng: np.random.Generator) -> Tensor:
    """Depths [H, W] with the errors of an estimator, float64.

    They are multiplied by exp(e), e a smooth random field with deviation 0.12; edges are moved by
    another one with deviations of 0.7 pixels, and blurred by a Gaussian of the same deviation.
    """
    height, width = depth.shape
    shift = EDGE * torch.stack([_field(rng, height, width), _field(rng, height, width)], -1)
    rows, columns = torch.meshgrid(
        torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
    )
    at = torch.stack([columns, rows], -1) + shift
    grid = (2 * at + 1) / torch.tensor([width, height]) - 1
    logs = F.grid_sample(
        depth.double().log()[None, None],
        grid[None],
        padding_mode="border",
        align_corners=False,
    )
    along = torch.arange(-2, 3).double()
    weights = (-(along**2) / (2 * EDGE**2)).exp()
    weights = (weights / weights.sum()).view(1, 1, 1, 5)
    logs = F.conv2d(F.pad(logs, (2, 2, 0, 0), "replicate"), weights)
    logs = F.conv2d(F.pad(logs, (0, 0, 2, 2), "replicate"), weights.mT)
    return (logs[0, 0] + DEVIATION * _field(rng, height, width)).exp()


def agreement(film: Rendered, views: Tensor, masks: Tensor) -> float:
    """PSNR in dB of views [F, 3, H, W] to a film, where they are known and away from edges.

    Frame 0 does not count. A pixel is at an edge if the greatest depth in the 5×5 pixels around
    it is more than 1.1 times the least.
    """
    depths = film.depths[:, None]
    edges = F.max_pool2d(depths, 5, 1, 2) > (1 + STEP) * -F.max_pool2d(-depths, 5, 1, 2)
    counted = (masks & ~edges[:, 0])[1:, None].expand_as(views[1:])
    warped, true = (each[1:][counted].view(1, 1, 1, -1) for each in (views, film.frames))
    return float(psnr(warped, true))


def _warped(picture: Tensor, depth: Tensor, cameras: Sequence[Camera]) -> tuple[Tensor, Tensor]:
    """A film's known views [F, 3, H, W] and masks [F, H, W] by the depths of frame 0."""
    pairs = [warp(picture, depth, cameras[0], camera) for camera in cameras[1:]]
    known = torch.ones_like(depth, dtype=torch.bool)
    views, masks = zip((picture, known), *pairs, strict=True)
    return torch.stack(views), torch.stack(masks)


def _field(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """A smooth random field of mean 0 and deviation 1, float64 [height, width]."""
    numbers = torch.from_numpy(rng.standard_normal((1, 1, SMOOTH, SMOOTH)))
    field = F.interpolate(numbers, (height, width), mode="bicubic", align_corners=False)[0, 0]
    return (field - field.mean()) / field.std()


def _as_json(text: str, cameras: Sequence[Camera]) -> dict[str, object]:
    return {
        "text": text,
        "focal": cameras[0].focal,
        "centre": cameras[0].centre,
        "rotations": [camera.rotation.tolist() for camera in cameras],
        "positions": [camera.position.tolist() for camera in cameras],
    }
