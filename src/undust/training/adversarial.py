"""The adversarial loss of a first stage, and the training of its discriminator."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from undust.errors import UndustError
from undust.networks.discriminator import Norm, PatchDiscriminator
from undust.training.configs import Config, OptimizerConfig, StepsOrShare
from undust.training.losses import adaptive_weight, hinge

WON = 0.05  # hinge loss of a discriminator that has won
WINDOW = 100  # steps before it is judged


class DiscriminatorConfig(Config):
    """The discriminator of patches, which the decoder learns to deceive (Esser et al. 2021)."""

    weight: float = Field(
        default=0.0, ge=0, description="weight of the adversarial loss; 0: no discriminator"
    )
    start: StepsOrShare = Field(
        default=0.25, description="step of its first update; below 1, a share of run.steps"
    )
    adaptive: bool = Field(
        default=True,
        description="multiply the weight by the ratio of the gradients at the decoder's last layer",
    )
    layers: int = Field(
        default=3, gt=0, le=6, description="convolutions of stride 2; 3: patches of 70×70 pixels"
    )
    channels: int = Field(default=64, gt=0, le=2**12, description="channels of the first layer")
    norm: Norm = Field(
        default="batch", description="normalisation: over the batch as published, or each picture"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="of its AdamW; left out: optimizer.learning_rate"
    )

    def first_step(self, steps: int) -> int:
        """The number of steps before its first update in a run of `steps`."""
        return round(self.start * steps) if self.start < 1 else int(self.start)

    def optimizer(self, shared: OptimizerConfig) -> OptimizerConfig:
        """Its AdamW; shared: the recipe's table `optimizer`, whose other keys hold here too."""
        rate = self.learning_rate or shared.learning_rate
        return shared.model_copy(update={"kind": "adamw", "learning_rate": rate})


class Adversary:
    """A discriminator and its two losses, whose gradients are kept apart.

    network: trained by the loss "discriminator" alone; the decoder by "adversarial" alone.
    """

    def __init__(self, config: DiscriminatorConfig, side: int, steps: int) -> None:
        """side: of the pictures, pixels; steps: of the run. UndustError for too small pictures."""
        self.config, self.steps = config, steps
        self.first_step = config.first_step(steps)
        self.network = PatchDiscriminator(
            layers=config.layers, channels=config.channels, norm=config.norm
        )
        if side < self.network.smallest:
            raise UndustError(
                f"discriminator.layers = {config.layers} needs pictures of at least "
                f"{self.network.smallest} pixels, not {side}; fewer layers need half as much each"
            )

    def losses(
        self, real: Tensor, fake: Tensor, likelihood: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both weighted losses, and their terms by name.

        real, fake: pictures [B,3,H,W] and their reconstructions; likelihood: the loss that the
        adaptive weight balances; step: the number of earlier steps. Before the first step, and for
        pictures that are too small, there are no terms and all gradients are zero.
        """
        if step < self.first_step or min(fake.shape[-2:]) < self.network.smallest:
            return sum((0 * p.sum() for p in self.network.parameters()), torch.zeros(())), {}
        deceived = -self._frozen(fake).float().mean()
        weight = deceived.new_tensor(self.config.weight)
        if self.config.adaptive:
            weight = weight * adaptive_weight(likelihood, deceived, last_layer)
        own = hinge(self.network(real).float(), self.network(fake.detach()).float())
        terms = {"adversarial": deceived, "adversarial_weight": weight, "discriminator": own}
        return weight * deceived + own, terms

    def _frozen(self, x: Tensor) -> Tensor:
        """Logits whose gradients go to the pictures alone."""
        state = {name: value.detach() for name, value in self.network.named_parameters()}
        return functional_call(self.network, state, x)

    def never_starts(self) -> str:
        """A line for people if the discriminator starts after the run's end, else ""."""
        if self.first_step < self.steps:
            return ""
        return (
            f"the discriminator never starts: discriminator.start is step {self.first_step:,}, and "
            f"the run ends at step {self.steps:,}; a share of the run does, such as 0.25"
        )

    def has_won(self, step: int, loss: float) -> str:
        """A line for people on a discriminator that separates all pictures, else "".

        loss: the mean of "discriminator" over the last steps; step: the number of steps done.
        """
        if step < self.first_step + WINDOW or loss >= WON:
            return ""
        return (
            f"the discriminator has won: it separates pictures from reconstructions (hinge loss "
            f"{loss:.3f}; 1 is chance), and its gradients teach little; lower "
            "discriminator.learning_rate or discriminator.channels, or start it later"
        )
