"""Scenes of flat layers before a moving camera, rendered with their depth and their motion.

Coordinates are those of `undust.conditioning.warp`: x points right, y down, z into the scene, and
the pixel in row v and column u is the point (u, v). The world's axes are those of the first camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.conditioning.warp import Camera

FINE = 3  # samples of a pixel along each side
OPAQUE = 0.5  # the least cover of a pixel by the layer whose depth it has


@dataclass(frozen=True, eq=False)
class Layer:
    """A square picture that faces the first camera.

    texture: [4, n, n], from 0 to 1, colours multiplied by their opacity; places: of its middle in
    each frame [F, 3]; halves: of its side [F]; angles: by which it is turned clockwise, radians
    [F], float64; endless: whether it goes on beyond its sides, mirrored.
    """

    texture: Tensor
    places: Tensor
    halves: Tensor
    angles: Tensor
    endless: bool = False


@dataclass(frozen=True, eq=False)
class Rendered:
    """A film with what is known of it.

    frames: [F, 3, H, W] in [-1, 1]; depths: along each camera's z axis, float64 [F, H, W];
    motion: the mean displacement of pixels from one frame to the next, pixels.
    """

    frames: Tensor
    depths: Tensor
    motion: float


def camera_for(size: int, rotation: Tensor, position: Tensor) -> Camera:
    """A camera for square pictures of `size` pixels, with a field of view of 53°."""
    return Camera(float(size), ((size - 1) / 2, (size - 1) / 2), rotation, position)


def homographies(layer: Layer, cameras: Sequence[Camera]) -> Tensor:
    """From a layer's texture to pixels, float64 [F, 3, 3].

    They map (a, b, 1), each from -1 to 1 on the texture, to (u, v, 1) times the depth.
    """
    found: list[Tensor] = []
    for frame, camera in enumerate(cameras):
        angle, half = layer.angles[frame], layer.halves[frame]
        across, down = half * angle.cos(), half * angle.sin()
        plane = torch.zeros(3, 3, dtype=torch.float64)
        plane[:2, :2] = torch.stack([across, -down, down, across]).view(2, 2)
        plane[:, 2] = layer.places[frame] - camera.position
        lens = torch.diag(torch.tensor([camera.focal, camera.focal, 1.0], dtype=torch.float64))
        lens[0, 2], lens[1, 2] = camera.centre
        found.append(lens @ camera.rotation.T @ plane)
    return torch.stack(found)


def render(layers: Sequence[Layer], cameras: Sequence[Camera], size: int) -> Rendered:
    """The film of layers, the farthest first, with as many cameras as frames.

    Each pixel is the mean of 3×3 samples around (u, v). Its depth and motion are those of the
    nearest layer that covers at least half of it.
    """
    count = len(cameras)
    fine = _points((torch.arange(size * FINE, dtype=torch.float64) + 0.5) / FINE - 0.5)
    pixels = _points(torch.arange(size, dtype=torch.float64))
    picture = torch.zeros(count, 3, size * FINE, size * FINE)
    depths = torch.zeros(count, size, size, dtype=torch.float64)
    moved = torch.zeros(count - 1, size, size, dtype=torch.float64)
    for layer in layers:
        to_pixels = homographies(layer, cameras)
        to_texture = torch.linalg.inv(to_pixels)
        seen = _sampled(layer, to_texture @ fine, size * FINE)
        colours, cover = seen[:, :3], seen[:, 3:]
        picture = picture * (1 - cover) + colours
        covered = F.avg_pool2d(cover, FINE)[:, 0] >= OPAQUE
        at = to_texture @ pixels  # (a, b, 1) / depth
        depths = torch.where(covered, (1 / at[:, 2]).view_as(depths), depths)
        after = to_pixels[1:] @ at[:-1]
        u, v = (after[:, :2] / after[:, 2:] - pixels[:2]).unbind(1)
        step = torch.hypot(u, v).view_as(moved)
        moved = torch.where(covered[:-1], step, moved)
    frames = F.avg_pool2d(picture, FINE).clamp(0, 1) * 2 - 1
    return Rendered(frames, depths, float(moved.mean()) if count > 1 else 0.0)


def visible_square(depth: float, cameras: Sequence[Camera], size: int) -> tuple[Tensor, float]:
    """The least square at a depth of the world that cameras see: its middle [3] and half side."""
    middle = torch.tensor([0, 0, depth], dtype=torch.float64)
    one = torch.ones(len(cameras), dtype=torch.float64)
    plane = Layer(torch.zeros(4, 1, 1), middle.expand(len(cameras), 3), one, 0 * one)
    corners = _points(torch.tensor([-0.5, size - 0.5], dtype=torch.float64))
    seen = torch.linalg.inv(homographies(plane, cameras)) @ corners
    places = (seen[:, :2] / seen[:, 2:]).mT.flatten(0, 1)  # as the half side is 1
    least, most = places.amin(0), places.amax(0)
    return torch.cat([(least + most) / 2, middle[2:]]), float((most - least).max()) / 2


def _points(along: Tensor) -> Tensor:
    """The points (u, v, 1) of a square grid, row by row [3, n·n]."""
    v, u = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)]).flatten(1)


def _sampled(layer: Layer, at: Tensor, side: int) -> Tensor:
    """The layer's texture at points (a, b, 1), times any number [F, 3, n]: [F, 4, side, side]."""
    count = len(at)
    grid = (at[:, :2] / at[:, 2:]).mT.float().view(count, side, side, 2)
    return F.grid_sample(
        layer.texture.expand(count, -1, -1, -1),
        grid,
        padding_mode="reflection" if layer.endless else "zeros",
        align_corners=False,
    )
