"""Paths of cameras and motions of sprites, for `moving_pictures`.

Speeds are displacements in the picture, in pixels per frame at 64 px. The names of directions are
the camera's: in a pan to the left the picture goes right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from moving_scenes import camera_for
from torch import Tensor

from undust.conditioning.warp import Camera

REFERENCE = 64  # pixels of the width that speeds are of
RADIUS = 24 / REFERENCE  # a pixel's mean distance from the middle, of the width
DIRECTIONS: Mapping[str, tuple[float, float]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
Pose = Callable[[float], tuple[Tensor, Tensor]]
"""The camera's rotation and position at a part of its path."""
Made = tuple[str, float, Pose]
"""A path's text, its whole angle or length, and its poses."""
WIDEST = 0.6  # radians that a camera turns at most
CLOSEST = 0.7  # of the way to the nearest sprite that a camera goes at most


@dataclass(frozen=True)
class Depths:
    """Of the nearest sprite and of the background."""

    nearest: float
    background: float


@dataclass(frozen=True)
class CameraMotion:
    """A camera's path.

    text: as in captions; steps: of the path from 0, in the first frame, to 1 [F]; strength: its
    whole angle or length; pose: rotation and position at a part of the strength.
    """

    text: str
    steps: Tensor
    strength: float
    pose: Pose

    def cameras(self, size: int) -> list[Camera]:
        """Of all frames, for square pictures of `size` pixels."""
        poses = (self.pose(self.strength * step) for step in self.steps.tolist())
        return [camera_for(size, rotation, position) for rotation, position in poses]


@dataclass(frozen=True)
class CameraKind:
    """A kind of motion: the least and greatest speed, and the share of the depth of sprites.

    share: the depths of sprites, as parts of the background's; make: the text, the strength for an
    extent of the picture's displacement in parts of its width, and the pose.
    """

    speeds: tuple[float, float]
    share: tuple[float, float]
    make: Callable[[np.random.Generator, Depths, float], Made]

    def drawn(
        self, rng: np.random.Generator, depths: Depths, frames: int, factor: float = 1.0
    ) -> CameraMotion:
        """A path of this kind; factor: of its speed."""
        low, high = self.speeds
        speed = factor * (low * (high / low) ** rng.random() if low else 0.0)
        text, strength, pose = self.make(rng, depths, speed * (frames - 1) / REFERENCE)
        return CameraMotion(text, _steps(rng, frames), strength, pose)


def _steps(rng: np.random.Generator, frames: int) -> Tensor:
    """Of one speed, or in a third of paths slower at both ends, float64 [F] from 0 to 1."""
    steps = torch.linspace(0, 1, frames, dtype=torch.float64)
    return (1 - (math.pi * steps).cos()) / 2 if rng.random() < 1 / 3 else steps


def _pan(rng: np.random.Generator, _depths: Depths, extent: float) -> Made:
    name, (x, y) = _direction(rng)
    whole = min(extent, WIDEST)
    return f"pan {name}", whole, lambda angle: (_turned(x * angle, y * angle), _at(0, 0, 0))


def _shift(rng: np.random.Generator, depths: Depths, extent: float) -> Made:
    name, (x, y) = _direction(rng)
    return f"pan {name}", extent * depths.background, lambda way: (_eye(), _at(x * way, y * way, 0))


def _zoom(rng: np.random.Generator, depths: Depths, extent: float) -> Made:
    inwards = rng.random() < 0.5
    growth = math.exp(extent / RADIUS)
    way = depths.background * (1 - 1 / growth if inwards else 1 - growth)
    way = min(way, CLOSEST * depths.nearest)
    return f"zoom {'in' if inwards else 'out'}", way, lambda z: (_eye(), _at(0, 0, z))


def _roll(rng: np.random.Generator, _depths: Depths, extent: float) -> Made:
    clockwise = rng.random() < 0.5
    angle = extent / RADIUS * (1 if clockwise else -1)
    name = "clockwise" if clockwise else "counterclockwise"
    return f"turn {name}", angle, lambda part: (_rolled(part), _at(0, 0, 0))


def _parallax(rng: np.random.Generator, depths: Depths, extent: float) -> Made:
    name, (x, y) = _direction(rng)
    return f"move {name}", extent * depths.nearest, lambda way: (_eye(), _at(x * way, y * way, 0))


def _orbit(rng: np.random.Generator, depths: Depths, extent: float) -> Made:
    """A circle around a point half-way between the nearest sprite and the background."""
    name, (x, y) = _direction(rng)
    middle = (depths.nearest + depths.background) / 2
    angle = min(extent * depths.background / (depths.background - middle), WIDEST)

    def pose(part: float) -> tuple[Tensor, Tensor]:
        aside, along = middle * math.sin(part), middle * (1 - math.cos(part))
        return _turned(-x * part, -y * part), _at(x * aside, y * aside, along)

    return f"orbit {name}", angle, pose


def _still(_rng: np.random.Generator, _depths: Depths, _extent: float) -> Made:
    return "still", 0.0, lambda _: (_eye(), _at(0, 0, 0))


def _direction(rng: np.random.Generator) -> tuple[str, tuple[float, float]]:
    name = str(rng.choice([*DIRECTIONS]))
    return name, DIRECTIONS[name]


def _eye() -> Tensor:
    return torch.eye(3, dtype=torch.float64)


def _at(x: float, y: float, z: float) -> Tensor:
    return torch.tensor([x, y, z], dtype=torch.float64)


def _turned(right: float, down: float) -> Tensor:
    """The rotation of a camera that looks to the right, or down, by that angle, in radians."""
    c, s = math.cos(right), math.sin(right)
    e, t = math.cos(down), math.sin(down)
    around_y = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    around_x = torch.tensor([[1, 0, 0], [0, e, t], [0, -t, e]], dtype=torch.float64)
    return around_y @ around_x


def _rolled(clockwise: float) -> Tensor:
    """The rotation of a camera that is turned clockwise around its z axis, seen from behind it."""
    c, s = math.cos(clockwise), math.sin(clockwise)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


KINDS: Mapping[str, CameraKind] = {
    "pan": CameraKind((0.7, 3.5), (0.3, 0.8), _pan),
    "shift": CameraKind((0.7, 3.0), (0.8, 0.95), _shift),
    "zoom": CameraKind((0.5, 1.1), (0.6, 0.85), _zoom),
    "turn": CameraKind((0.6, 2.6), (0.3, 0.8), _roll),
    "parallax": CameraKind((1.2, 5.0), (0.28, 0.7), _parallax),
    "orbit": CameraKind((0.7, 2.0), (0.28, 0.7), _orbit),
    "still": CameraKind((0.0, 0.0), (0.3, 0.8), _still),
}


@dataclass(frozen=True)
class SpriteMotion:
    """A sprite's own motion: its text, and what is added to its pose.

    offsets: of its place in the picture, in parts of the width [F, 2]; scales: of its size [F];
    angles: clockwise, radians [F].
    """

    text: str
    offsets: Tensor
    scales: Tensor
    angles: Tensor


def sprite_motion(rng: np.random.Generator, frames: int) -> SpriteMotion:
    """One of drift, spin, bounce, grow and shrink."""
    time = torch.arange(frames, dtype=torch.float64)
    offsets = torch.zeros(frames, 2, dtype=torch.float64)
    scales, angles = torch.ones_like(time), torch.zeros_like(time)
    kind = str(rng.choice(["drifts", "spins", "bounces", "grows", "shrinks"]))
    if kind == "drifts":
        name, way = _direction(rng)
        kind = f"drifts {name}"
        offsets = time[:, None] * torch.tensor(way) * float(rng.uniform(0.5, 2.5)) / REFERENCE
    elif kind == "spins":
        angles = time * math.radians(rng.uniform(4, 14)) * float(rng.choice([-1, 1]))
    elif kind == "bounces":
        height = float(rng.uniform(4, 10)) / REFERENCE
        offsets[:, 1] = -height * (math.pi * time / float(rng.uniform(5, 8))).sin().abs()
    else:
        rate = float(rng.uniform(0.02, 0.06))
        scales = (rate * time * (1 if kind == "grows" else -1)).exp()
    return SpriteMotion(kind, offsets, scales, angles)
