"""Canny's edge detector (Canny 1986), for ControlNets trained on its output."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from undust.errors import UndustError
from undust.pictures import from_image

Numbers = NDArray[np.int32]
Mask = NDArray[np.bool_]
TAN = 13573  # tan 22.5° times 2¹⁵, between two of eight directions, as OpenCV rounds it


def canny_edges(picture: Tensor | Image.Image, low: float = 100, high: float = 200) -> Tensor:
    """A picture → its edges, one pixel wide, white on black: [3,H,W] of 0 and 1.

    picture: an image, or [3,H,W] in [0, 1]; low, high: thresholds of |∂x| + |∂y| by Sobel's 3×3
    kernels on 8-bit values, as in OpenCV's `Canny`. Edges are pixels above `high`, and pixels above
    `low` connected to them. Of the three channels the largest gradient counts. Raises UndustError
    unless 0 ≤ low ≤ high.
    """
    if not 0 <= low <= high:
        raise UndustError(f"edges need thresholds 0 <= low <= high, not {low:g} and {high:g}")
    if isinstance(picture, Image.Image):
        bytes_ = from_image(picture, picture.size)
    else:
        bytes_ = (picture.detach().cpu().float().clamp(0, 1) * 255).round()
    right, down = _gradient(bytes_.to(torch.int32).numpy())
    steepness = np.abs(right) + np.abs(down)
    thin = _ridge(steepness, right, down)
    found = _connected(thin & (steepness > low), thin & (steepness > high))
    return torch.from_numpy(found).float().expand(3, -1, -1)


def _gradient(x: Numbers) -> tuple[Numbers, Numbers]:
    """[C,H,W] → Sobel's ∂x and ∂y [H,W], of the channel with the largest gradient."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    columns = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    right, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    steepest = (np.abs(right) + np.abs(down)).argmax(axis=0)[None]
    return (
        np.take_along_axis(right, steepest, axis=0)[0],
        np.take_along_axis(down, steepest, axis=0)[0],
    )


def _ridge(steepness: Numbers, right: Numbers, down: Numbers) -> Mask:
    """Local maxima of the gradient along its direction (non-maximum suppression)."""
    height, width = steepness.shape
    padded = np.pad(steepness, 1)

    def beside(step_down: int, step_right: int) -> Numbers:
        y, x = 1 + step_down, 1 + step_right
        return padded[y : y + height, x : x + width]

    x, y = TAN * np.abs(right), np.abs(down) << 15
    level, upright = y < x, y > x + (np.abs(right) << 16)  # tan 67.5° is tan 22.5° + 2
    falling = (right < 0) == (down < 0)
    cases = [level, upright, falling]
    before = np.select(cases, [beside(0, -1), beside(-1, 0), beside(-1, -1)], beside(-1, 1))
    after = np.select(cases, [beside(0, 1), beside(1, 0), beside(1, 1)], beside(1, -1))
    # Of two pixels alike along a row or a column the first is taken; both would be two wide.
    return (steepness > before) & (steepness + (level | upright) > after)


def _connected(weak: Mask, strong: Mask) -> Mask:
    """The weak pixels that are 8-connected to a strong one (hysteresis)."""
    width = weak.shape[1] + 2
    left = np.pad(weak, 1).ravel()
    found = np.zeros_like(left)
    steps: NDArray[Any] = np.add.outer([-width, 0, width], [-1, 0, 1]).ravel()
    front = np.flatnonzero(np.pad(strong, 1))
    while front.size:
        found[front], left[front] = True, False
        near = np.unique(front[:, None] + steps)
        front = near[left[near]]
    return found.reshape(-1, width)[1:-1, 1:-1].copy()
