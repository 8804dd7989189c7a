"""The noise of a training step, and two changes of it that are published."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from undust.training.configs import Config
from undust.training.data import Batch, RandomStream


class NoiseChangesConfig(Config):
    """Changes of the training noise; none by default."""

    offset: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="deviation of noise that all pixels of a channel share (Guttenberg 2023), so "
        "that very dark and bright pictures are generated; 0.1 is common",
    )
    perturbation: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="deviation of noise in the network's input alone, against the errors of its "
        "own steps (Ning et al. 2023: 0.1)",
    )


def training_noise(
    config: NoiseChangesConfig, batch: Batch, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The noise of the target and that of the network's input, both [B, C, H, W].

    shape: (C, H, W). The offset is in both: n + offset·c (c constant in a channel); the
    perturbation in the input alone: n + perturbation·ξ (Ning et al. 2023, algorithm 1).
    """
    noise = batch.normal(RandomStream.NOISE, shape)
    if config.offset:
        shared = batch.normal(RandomStream.OFFSET, (shape[0], 1, 1))
        noise = noise + config.offset * shared
    if not config.perturbation:
        return noise, noise
    return noise, noise + config.perturbation * batch.normal(RandomStream.PERTURBATION, shape)
