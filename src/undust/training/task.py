"""What the training loop needs to know of a kind of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor, nn

from undust.conditioning.tokenizer import Tokenizer
from undust.training.data import Batch, SampleOrder


class Task(Protocol):
    """A kind of training, ready to run.

    modules: what is trained; order: the samples of each step; notes: for people, on the data.
    """

    modules: nn.ModuleDict
    order: SampleOrder
    notes: list[str]

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
        """Scalar terms of the batch's loss by name; "loss" is minimised."""
        ...

    def preview(self, *, brief: bool = False) -> Image.Image:
        """An image of results of the current weights; brief: with the least work."""
        ...

    def publish(self, folder: Path, *, brief: bool = False) -> None:
        """Writes the current weights as a model folder, replacing one that is there.

        brief: with the least work, for a folder that is only a test.
        """
        ...

    def next_steps(self, model: Path, data: Path) -> str:
        """A line for people: uses of the finished model, trained with the data in a folder."""
        ...
