"""A ControlNet at work: which picture it shows, how strongly, and how long (Zhang et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.controlnet import ControlNet


@dataclass(frozen=True, eq=False)
class AppliedControlNet:
    """A ControlNet and what it is to show.

    hint: pictures [N,3,H,W] in [0, 1], one for all or one for each; weight: times what the network
    says; low, high: the σ between which it is asked, both included. Raises UndustError for values
    that make no sense.
    """

    network: ControlNet
    hint: Tensor
    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UndustError(f"a control's weight must be a number, not {self.weight}")
        if not 0 <= self.low <= self.high:
            raise UndustError(
                f"a control acts from a σ of 0 or more to one not below it, "
                f"not from {self.low:g} to {self.high:g}"
            )

    def acts(self, sigma: float) -> bool:
        """Whether it has something to say at this level of noise."""
        return self.weight != 0 and self.low <= sigma <= self.high

    def __call__(self, x: Tensor, timestep: Tensor, cond: Conditioning, /) -> list[Tensor]:
        """What it adds to a U-Net of these inputs, in x's precision; [] for a weight of 0.

        x: latents [B,C,h,w]. Hints are repeated where B is a multiple of theirs, as for guidance.
        A ControlNet that pools adds nothing to negative prompts, as its authors use it. Raises
        UndustError as `ControlNet.forward`, and for a B that is no multiple.
        """
        if self.weight == 0:
            return []
        like = self.network.conv_in.weight
        hint = self.hint.to(like)
        if len(hint) > 1:
            if len(x) % len(hint):
                raise UndustError(f"{len(hint)} hints cannot be shared by {len(x)} pictures")
            hint = hint.repeat(len(x) // len(hint), 1, 1, 1)
        cond = cond.to(like.device, like.dtype)
        control = self.network(x.to(like), timestep.to(like.device), cond, hint)
        if cond.negative is not None and self.network.pools:
            positive = ~cond.negative.reshape(-1, 1, 1, 1)
            control = [part * positive for part in control]
        return [part.to(x) * self.weight for part in control]


def summed(controls: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """What several controls add, together; those that add nothing may be among them.

    Raises UndustError for controls of different U-Nets.
    """
    said = [control for control in controls if control]
    if any(
        [part.shape for part in control] != [part.shape for part in said[0]] for control in said
    ):
        raise UndustError("the controls are for different models: what they add differs in shape")
    return [reduce(add, parts) for parts in zip(*said, strict=True)]
