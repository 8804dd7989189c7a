"""The validation loss: the loss of held-out samples, comparable between steps and runs.

Noise, times, crops and captions of the samples are the same at each validation and in every run,
whatever its seed: a difference is one of the weights, not of chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undust.training.data import Batch, SampleOrder

MIN_DRAWS = 64  # of a few held-out samples each is drawn several times
TURN = 3  # validations without a lower loss after which it is said to have turned


@dataclass(frozen=True)
class Lowest:
    """The lowest validation loss of a run, its step, and the number of validations since."""

    step: int
    loss: float
    since: int = 0


def validate(
    order: SampleOrder, losses: Callable[[Batch], Mapping[str, Tensor]], size: int, step: int
) -> dict[str, float]:
    """Means of the losses over whole epochs of the held-out samples, as "validation_loss" etc.

    size: of a batch; step: of the run, for losses that depend on it.
    """
    samples = len(order.groups)
    epochs = math.ceil(MIN_DRAWS / samples)
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in order.whole_epochs(epochs, size, step):
            for name, value in losses(batch).items():
                sums[name] = sums.get(name, 0.0) + len(batch) * float(value)
    return {f"validation_{name}": total / (epochs * samples) for name, total in sums.items()}


class ValidationHistory:
    """The lowest validation loss so far, and when to stop for want of a lower one.

    patience: the number of validations without a lower loss after which a run stops; 0: never.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.lowest: Lowest | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the run stops."""
        return bool(self.patience and self.lowest and self.lowest.since >= self.patience)

    def add(self, step: int, loss: float) -> bool:
        """Takes the loss of a step; whether it is the lowest so far."""
        before = self.lowest
        lower = before is None or loss < before.loss
        if lower and math.isfinite(loss):
            self.lowest = Lowest(step, loss)
            return True
        if before:
            self.lowest = replace(before, since=before.since + 1)
        return False

    def notes(self, loss: float, *, last: bool) -> Sequence[str]:
        """A line for people if the run ends or the loss has just turned; loss: the newest."""
        if not self.lowest:
            return []
        step, lowest, since = self.lowest.step, self.lowest.loss, self.lowest.since
        if last or self.exhausted:
            end = f"{loss:.5f} at the end" if since else "at the end"
            return [f"validation loss: lowest {lowest:.5f} at step {step}, {end}"]
        if since == TURN:
            return [
                f"the validation loss was lowest at step {step} ({lowest:.5f}); now {loss:.5f}, it "
                f"has not been lower in {since} validations: the model may overfit"
            ]
        return []

    def stopped(self) -> str:
        """A line for people on a run that stopped for want of a lower loss, and on its model."""
        assert self.lowest
        return (
            f"stopped after {self.lowest.since} validations without a lower loss; the model has "
            f"the averaged weights of step {self.lowest.step}"
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self.lowest) if self.lowest else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.lowest = Lowest(**state) if state else None
