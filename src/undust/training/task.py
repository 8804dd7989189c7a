"""A kind of training: its configuration, and the interface of its task to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.conditioning.tokenizer import Tokenizer
from undust.evaluation.figure import Figure
from undust.evaluation.networks import FigureNetworks
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import Config, DataConfig, OptimizerConfig, RunConfig
from undust.training.data import Batch, Observe, SampleOrder
from undust.training.figures import FiguresConfig
from undust.training.sources import TrainingData


class Task(Protocol):
    """A kind of training, ready to run.

    data: all samples. modules: all that is trained; their persistent buffers are part of a
    checkpoint too. networks: those that a step calls, trained or not, which are moved to the run's
    device. order: the training samples of each step; validation: the held-out samples, with random
    numbers that do not depend on the run's seed, or None if there are none. notes: for people, on
    the data.
    """

    data: TrainingData
    modules: nn.ModuleDict
    networks: nn.ModuleDict
    order: SampleOrder
    validation: SampleOrder | None
    notes: list[str]

    @property
    def optimizers(self) -> Mapping[str, OptimizerConfig]:
        """Entries of `modules` with an optimizer and a gradient norm of their own, by name.

        All others share the recipe's table `optimizer`.
        """
        ...

    @property
    def inputs(self) -> Mapping[str, str]:
        """Digests of the run's inputs, by name."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the text encoder that is trained, if there is one."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """Captions of the preview's cells, row by row; empty if they have none."""
        ...

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms of the batch's loss by name; "loss" is minimised.

        With optimizers of several modules "loss" is the sum of their losses, each of which has
        gradients to its own module alone. For the validation loss it is called with gradients
        disabled and the modules in evaluation mode; terms that need gradients are left out then.
        """
        ...

    def diagnoses(self, step: int, means: Mapping[str, float]) -> Mapping[str, str]:
        """Lines for people on faults of the training, by the fault's name; each is told once.

        means: of the values of `losses` in recent steps.
        """
        ...

    def preview(self, *, brief: bool = False) -> Image.Image:
        """An image of results of the current weights; brief: with the least work."""
        ...

    def publish(self, folder: Path, *, brief: bool = False) -> None:
        """Writes the current weights as a model folder, replacing one that is there.

        brief: with the least work, for a folder that is only a test.
        """
        ...

    def figures(
        self, config: FiguresConfig, networks: FigureNetworks
    ) -> Callable[[], list[Figure]]:
        """A function that measures the current weights, in evaluation mode."""
        ...

    def next_steps(self, model: Path, data: Path) -> str:
        """A line for people: uses of the finished model, trained with the data in a folder."""
        ...


class TrainingConfig(Config, ABC):
    """The keys that every kind of training has; a subclass is one kind, named by its key `kind`."""

    seed: int = Field(default=0, ge=0, lt=2**64, description="seed of all random numbers")
    data: DataConfig
    optimizer: OptimizerConfig
    run: RunConfig
    figures: FiguresConfig = FiguresConfig()

    def complete(self) -> Self:
        """This configuration with the keys that follow from other keys filled in.

        Raises UndustError for keys that contradict each other.
        """
        return self

    @abstractmethod
    def task(self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe) -> Task:
        """The task that this configures, in the run's folder `out`.

        resumed: the checkpoint to continue from; observe: called with the numbers of images
        prepared and of all. Raises UndustError for data that cannot be trained on, and if they are
        not the data of `resumed`.
        """

    @model_validator(mode="after")
    def _ramps_fit(self) -> Self:
        steps = self.run.steps
        up, down = self.optimizer.ramps(steps)
        if up + down > steps:
            fits = (
                f"optimizer.cool_down = {steps - up} would fit, or "
                if up < steps
                else f"optimizer.warm_up = {steps - down} would fit, or "
                if down < steps
                else ""
            )
            raise ValueError(
                f"optimizer.warm_up ({up:,} steps) and optimizer.cool_down ({down:,} steps) are "
                f"longer than the run (run.steps = {steps:,}): its learning rate would never be "
                f"reached; {fits}shares of the run do, such as 0.05 and 0.45"
            )
        return self
