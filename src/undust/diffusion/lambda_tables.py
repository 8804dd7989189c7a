"""Tables of guidance strengths over noise level × frame, for a video that follows known views.

A frame's estimate x0 and its known latent F, of weight λ, have the mean (x0 + λ·F)/(1 + λ). A table
has w = λ/(1 + λ), the share of F, for each noise level σ and frame. Frames far from the known image
and low noise levels, where the network knows more than a warped view, have small λ.

The search, its objective and its constants are those of NVS-Solver (You et al. 2025), seed 001's
`search_hypers`; `_roots` derives them and says where the published form differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from undust.errors import UndustError

# Coefficients of the search, tried in this order, v1 outermost; the first best is kept.
V1 = tuple(k / 1000 for k in range(1, 10))  # of |log(K·λ + B)|
V2 = tuple(float(k) for k in range(50, 1001, 50))  # of the noise level
V3 = tuple(float(k) for k in range(10, 101, 10))  # of the distance
K, B = 0.8, -0.2
GUIDED = 0.5  # a triple is the better, the more weights are above it
CHUNK = 2**20  # numbers in a tensor of the search
NEAR = 1e-4  # relative tolerance of a sampler's levels against a table's

Views = Literal[1, 2]
"""The number of known images: the first frame, or the first and the last."""


@dataclass(frozen=True, eq=False)
class LambdaTable:
    """Guidance strengths for each noise level and frame.

    weights: w = λ/(1 + λ) in 0 … 1, float64 [N, F]; levels: σ of the rows, falling and above 0
    [N], as `noise_levels` gives them; triple: (v1, v2, v3) of the search, None for a table from
    elsewhere. Raises UndustError for another shape, fewer than 2 frames and other weights.
    """

    weights: Tensor
    levels: Tensor
    triple: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        noise_levels(self.levels)
        if self.weights.ndim != 2 or len(self.weights) != len(self.levels):
            raise UndustError(
                f"lambda table: weights of shape {[*self.weights.shape]} do not fit "
                f"{len(self.levels)} noise levels; they are [noise levels, frames]"
            )
        _check_frames(self.num_frames, 1)
        wrong = ~((self.weights >= 0) & (self.weights <= 1))
        if bool(wrong.any()):
            row, frame = wrong.nonzero()[0].tolist()
            raise UndustError(
                f"lambda table: the weight of noise level {row}, frame {frame} is "
                f"{self.weights[row, frame].item():g}; w = λ/(1 + λ) has to lie in 0 … 1"
            )

    @property
    def num_frames(self) -> int:
        """F."""
        return self.weights.shape[1]

    @property
    def lambdas(self) -> Tensor:
        """λ = w/(1 − w) [N, F]; infinite where w is 1."""
        return self.weights / (1 - self.weights)

    @property
    def count(self) -> int:
        """The number of weights above ½, or of λ above 1, which the search makes largest."""
        return int((self.weights > GUIDED).sum())

    def row(self, sigma: float) -> Tensor:
        """The weights [F] at a noise level. Raises UndustError if it is not one of the table's."""
        off = (self.levels - sigma).abs()
        nearest = int(off.argmin())
        level = self.levels[nearest].item()
        if not off[nearest].item() <= NEAR * level:
            raise UndustError(
                f"lambda table: σ = {sigma:.6g} is not one of its {len(self.levels)} noise levels, "
                f"the nearest is {level:.6g}; search a table for the sampler's own levels, and use "
                "a sampler that stops at no others, such as euler"
            )
        return self.weights[nearest]


def noise_levels(sigmas: Tensor) -> Tensor:
    """σ of the rows of a table, float64 [N]: a sampler's list [N + 1] without its final 0, or [N].

    Raises UndustError for a list that is empty, does not fall or has other numbers in it.
    """
    if sigmas.ndim != 1 or not len(sigmas):
        raise UndustError(f"sigmas: a list of noise levels is needed, not shape {[*sigmas.shape]}")
    levels = sigmas.detach().to("cpu", torch.float64)
    if len(levels) > 1 and levels[-1] == 0:
        levels = levels[:-1]
    for place, level in enumerate(levels.tolist()):
        if not 0 < level < torch.inf:
            raise UndustError(
                f"sigmas: number {place} is {level:g}; noise levels are finite and above 0, and "
                "only the last one may be 0"
            )
        if place and level >= levels[place - 1]:
            raise UndustError(
                f"sigmas: number {place} is {level:g} after {levels[place - 1].item():g}; each has "
                "to be lower than the one before"
            )
    return levels


def table_of(weights: Tensor, sigmas: Tensor, num_frames: int) -> LambdaTable:
    """A table from w, [N, F] or all its rows in one [N·F], for a sampler's σ [N + 1] or [N].

    Raises UndustError that says which of the two numbers is off if they are not len(sigmas) ×
    num_frames, and as `noise_levels` and `LambdaTable` do.
    """
    levels = noise_levels(sigmas)
    _check_frames(num_frames, 1)
    needed = {"noise levels (rows)": len(levels), "frames (columns)": num_frames}
    if weights.ndim == 1 and weights.numel() == len(levels) * num_frames:
        weights = weights.reshape(len(levels), num_frames)
    if weights.shape != (len(levels), num_frames):
        found = " × ".join(map(str, weights.shape))
        message = f"lambda table: {found} weights do not fit {len(levels)} noise levels"
        message += f" (len(sigmas) without the final 0) × {num_frames} frames"
        if weights.ndim == 2:
            pairs = zip(needed.items(), weights.shape, strict=True)
            off = [name for (name, number), size in pairs if size != number]
            message += f"; the number of {' and that of '.join(off)} is off"
        else:
            message += f" = {len(levels) * num_frames}"
            message += _would_fit(weights.numel(), len(levels), num_frames)
        raise UndustError(message)
    return LambdaTable(weights.detach().to("cpu", torch.float64), levels)


def distances_along(positions: Tensor, views: Views = 1) -> Tensor:
    """The distance of each frame's camera from the nearest known one, in 0 … 1, float64 [F].

    positions: of the cameras, in any unit [F, 3]. The distance is that between positions, divided
    by the largest of the film. Raises UndustError if no camera moves or a number is not finite.
    """
    if positions.ndim != 2 or not bool(positions.isfinite().all()):
        raise UndustError(
            f"camera positions: finite numbers [frames, 3] are needed, not {[*positions.shape]}"
        )
    _check_frames(len(positions), views)
    places = positions.double()
    known = places[[0, -1]] if views == 2 else places[:1]
    nearest = (places[:, None] - known).norm(dim=-1).amin(1)
    if not nearest.max() > 0:
        raise UndustError("camera positions: at least one has to be away from the known images")
    return nearest / nearest.max()


def search(
    sigmas: Tensor,
    num_frames: int,
    *,
    views: Views = 1,
    distances: Tensor | None = None,
    derived: bool = False,
) -> LambdaTable:
    """The table of the triple (v1, v2, v3) with the most weights above ½; the first one wins.

    sigmas: a sampler's list [N + 1] or [N]; views: 1 for a known first frame, 2 for the last one
    too: their weights are 1; distances: of each frame from the nearest known one, 0 … 1 [F], by
    default those of a camera that moves evenly on a straight line; derived: the roots as derived
    instead of the published ones, which are lower by ¼. Triples without a root for some noise
    level and frame are left out.

    Raises UndustError as `noise_levels` does, for too few frames (2, or 3 with two views) and other
    distances, and if no triple is left.
    """
    levels = noise_levels(sigmas)
    _check_frames(num_frames, views)
    if distances is None:
        line = torch.arange(num_frames, dtype=torch.float64)
        distances = distances_along(line[:, None], views)
    if distances.shape != (num_frames,) or not bool(((distances >= 0) & (distances <= 1)).all()):
        raise UndustError(
            f"distances: {num_frames} numbers in 0 … 1 are needed, one for each frame, not "
            f"{[*distances.shape]} {distances.flatten()[:4].tolist()}"
        )
    between = slice(1, num_frames - (views - 1))
    noise = levels / levels[0]
    best: tuple[int, tuple[float, float, float], Tensor] | None = None
    for v1, v2, v3 in _triples(len(levels) * num_frames):
        slope = v3[:, None, None] * distances.double()[between] - v2[:, None, None] * noise[:, None]
        strengths = _roots(v1, slope, derived)
        weights = strengths / (1 + strengths)
        counts = (weights > GUIDED).sum((1, 2))
        counts[weights.isnan().any(2).any(1)] = -1
        top = int(counts.argmax())  # the first of equal ones
        if counts[top] > (-1 if best is None else best[0]):
            best = int(counts[top]), (v1, v2[top].item(), v3[top].item()), weights[top]
    if best is None:
        raise UndustError(
            f"lambda table: no coefficients have a λ at each of {len(levels)} noise levels × "
            f"{num_frames} frames; another number of steps has other levels"
        )
    table = torch.ones(len(levels), num_frames, dtype=torch.float64)
    table[:, between] = best[2]
    return LambdaTable(table, levels, best[1])


def _triples(size: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """All (v1, v2 [T], v3 [T]) in the order of the search, T triples of `size` weights at once."""
    pairs = torch.cartesian_prod(torch.tensor(V2).double(), torch.tensor(V3).double())
    for v1 in V1:
        for part in pairs.split(max(1, CHUNK // size)):
            yield v1, part[:, 0], part[:, 1]


def _roots(v1: float, slope: Tensor, derived: bool) -> Tensor:
    """λ for the slopes Q = v3·d − v2·σ/σ_max, of any shape; NaN where there is none.

    λ minimises v2·σ/σ_max/(1 + λ) + v3·d·λ/(1 + λ) + v1·|log(K·λ + B)|. The derivative is 0 where
    ±v1·K·(1 + λ)² + Q·(K·λ + B) = 0, with +v1 for K·λ + B > 1 and −v1 below. λ is the first root
    with +v1 that is above 1, or else with −v1 that is above 0 and at most 1. The published form has
    2v in place of 2Kv outside the discriminant. With these constants it is lower by 1/K − 1 = ¼ =
    −B/K, so that λ begins at 0, and the derived form where the logarithm does, at ¼.
    """
    found = torch.full_like(slope, torch.nan)
    start = -B / K if derived else 0.0
    for v, low, high in ((v1, 1.0, torch.inf), (-v1, start, 1.0)):
        linear = 2 * K * v + K * slope
        root = (linear.square() - 4 * K * v * (K * v + B * slope)).sqrt()  # NaN for no real one
        middle = linear if derived else 2 * v + K * slope
        for sign in (1, -1):
            here = (-middle + sign * root) / (2 * K * v)
            fits = found.isnan() & (here > low) & (here <= high)
            found = torch.where(fits, here, found)
    return found


def _check_frames(num_frames: int, views: int) -> None:
    if num_frames < 1 + views:
        known = "is" if views == 1 else "and the last are"
        raise UndustError(
            f"num_frames: {num_frames} is too few; the first frame {known} known, and at least one "
            "more is needed"
        )


def _would_fit(size: int, rows: int, num_frames: int) -> str:
    """The number that is off, if with one of the two as it is another would do."""
    fitting: list[str] = []
    if size and size % rows == 0:
        fitting.append(f"{size // rows} frames")
    if size and size % num_frames == 0:
        fitting.append(f"{size // num_frames} noise levels")
    return f"; they would fit {' or '.join(fitting)}" if fitting else ""
