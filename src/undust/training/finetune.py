"""Full fine-tuning: networks of a model that exists are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from undust.training.checkpoints import TrainingCheckpoint
from undust.training.data import Observe
from undust.training.existing import ExistingModelConfig, ExistingModelTask, chosen_networks


class FinetuneConfig(ExistingModelConfig):
    """Trains networks of a model that exists, all their weights."""

    kind: Literal["finetune"] = Field(description="what is trained")
    train: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="networks that are trained, such as unet, text_encoder, text_encoder_2; left "
        "out: the denoiser's alone",
    )

    def task(self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe) -> FinetuneTask:
        """The training of these networks."""
        return FinetuneTask(self, out, resumed, observe)


class FinetuneTask(ExistingModelTask):
    """All weights of some networks are trained; the others stay as they are."""

    def __init__(
        self,
        config: FinetuneConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. Raises UndustError for networks that the model lacks."""
        model = config.loaded()
        modules = chosen_networks(model, config.train)
        for parameter in (each for network in modules.values() for each in network.parameters()):
            parameter.data = parameter.data.clone()  # not of the file that is mapped
            parameter.requires_grad_()
        finished = not any(text.name in modules for text in model.texts)
        super().__init__(
            config, out, resumed, observe, model=model, modules=modules, text_is_finished=finished
        )

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the whole model as a diffusers folder."""
        self.model.save(folder)
