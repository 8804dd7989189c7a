"""Averages of the weights whose length is chosen after the run (Karras et al. 2024, EDM2).

Two averages with power-function profiles are kept, and snapshots of them. The average of any other
length is a combination of snapshots, whose profile is the closest in least squares (section 3.2 and
appendix C). A length is the profile's standard deviation, relative to the time of training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.files import make_folder

LENGTHS = (0.05, 0.10)
MAX_LENGTH = 1 / math.sqrt(12)  # of a mean of all steps


@dataclass(frozen=True)
class Profile:
    """The weights of steps in an average: proportional to τ^exponent for 0 < τ ≤ step."""

    exponent: float
    step: int

    @classmethod
    def of(cls, length: float, step: int) -> Profile:
        """That of a relative standard deviation (eq. 126: σ² = (γ + 1) / ((γ + 2)² (γ + 3)))."""
        t = length**-2
        return cls(float(np.roots([1, 7, 16 - t, 12 - t]).real.max()), step)

    def dot(self, other: Profile) -> float:
        """The inner product of two densities on their common time (appendix C.3)."""
        one, two, end = self.exponent, other.exponent, min(self.step, other.step)
        ratios = (end / self.step) ** one * (end / other.step) ** two
        scale = (one + 1) * (two + 1) / (one + two + 1)
        return scale * ratios * end / (self.step * other.step)


class PowerAverages:
    """The averages of `LENGTHS`, updated at each step: averages["0.05/name"]."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = [value.detach() for value in weights.values()]
        self._exponents = [Profile.of(length, 1).exponent for length in LENGTHS]
        self.averages = {
            f"{length}/{name}": value.detach().clone()
            for length in LENGTHS
            for name, value in weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` (from 1), with β = (1 − 1/step)^(γ + 1)."""
        values, count = list(self.averages.values()), len(self._weights)
        for number, exponent in enumerate(self._exponents):
            part = values[number * count : (number + 1) * count]
            new = 1 - (1 - 1 / step) ** (exponent + 1)
            torch._foreach_lerp_(part, self._weights, new)  # pyright: ignore

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Restores the averages of a checkpoint; KeyError if one is absent."""
        for name, value in self.averages.items():
            value.copy_(averages[name])


def save_snapshot(out: Path, step: int, averages: Mapping[str, Tensor]) -> None:
    """Writes the averages after a step to the run's folder."""
    make_folder(out / "snapshots")
    safetensors_file.save(_path(out, step), averages)


def remove_later(out: Path, step: int) -> None:
    """Removes the snapshots after a step, from which a run goes on. Raises UndustError."""
    for path in [_path(out, each) for each in snapshot_steps(out) if each > step]:
        try:
            path.unlink()
        except OSError as error:
            raise UndustError(f"cannot remove {path}: {error.strerror}") from error


def snapshot_steps(out: Path) -> list[int]:
    """The steps of a run's snapshots."""
    names = (path.name for path in (out / "snapshots").glob("step-*.safetensors"))
    return sorted(int(found[1]) for name in names if (found := re.match(r"step-(\d+)\.", name)))


def reconstructed(out: Path, length: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of a length, by the name of each weight, after `step` or the last snapshot.

    Raises UndustError for a length outside the range, a run without snapshots, and a step that is
    later than all of them.
    """
    if not 0.01 <= length <= MAX_LENGTH:
        raise UndustError(f"length: {length:g} is outside 0.01 … {MAX_LENGTH:.4f}")
    steps = snapshot_steps(out)
    if not steps:
        raise UndustError(f"{out} has no snapshots; they are written with run.snapshot_every")
    step = steps[-1] if step is None else step
    steps = [each for each in steps if each <= step]
    if not steps or step not in steps:
        near = f"; the last before is {steps[-1]}" if steps else ""
        raise UndustError(f"step: {step} is no snapshot of {out}{near}")
    profiles = [Profile.of(each, at) for at in steps for each in LENGTHS]
    parts = iter(coefficients(profiles, Profile.of(length, step)))
    found: dict[str, Tensor] = {}
    for at in steps:
        tensors = safetensors_file.load(_path(out, at))
        for each in LENGTHS:
            part = next(parts)
            for name in (name for name in tensors if name.startswith(f"{each}/")):
                own, value = name.partition("/")[2], part * tensors[name].double()
                found[own] = found[own] + value if own in found else value
    return {name: value.float() for name, value in found.items()}


def coefficients(profiles: Sequence[Profile], wanted: Profile) -> list[float]:
    """The factors of the profiles whose sum is closest to another one (algorithm 3).

    Other than there they add up to 1, so that a weight that does not change is its own average.
    """
    ones = np.ones((len(profiles), 1))
    products = np.array([[one.dot(two) for two in profiles] for one in profiles])
    system = np.block([[products, ones], [ones.T, np.zeros((1, 1))]])
    right = np.array([*(one.dot(wanted) for one in profiles), 1.0])
    return np.linalg.lstsq(system, right, rcond=1e-12)[0][:-1].tolist()


def _path(out: Path, step: int) -> Path:
    return out / "snapshots" / f"step-{step:08d}.safetensors"
