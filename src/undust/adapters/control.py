"""ControlNets with their input picture, weight and range of noise levels (Zhang et al. 2023)."""

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
    """A ControlNet with the inputs of one request.

    hint: pictures [N,3,H,W] in [0, 1], one for all or one for each; weight: factor of the output;
    low, high: the range of σ in which it is active, inclusive. Raises UndustError for a weight that
    is not finite and for an invalid range.
    """

    network: ControlNet
    hint: Tensor
    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UndustError(f"control: the weight has to be a finite number, not {self.weight}")
        if not 0 <= self.low <= self.high:
            raise UndustError(
                "control: the range of σ has to be 0 ≤ low ≤ high, "
                f"not {self.low:g} to {self.high:g}"
            )

    def acts(self, sigma: float) -> bool:
        """Whether it is active at this noise level."""
        return self.weight != 0 and self.low <= sigma <= self.high

    def __call__(self, x: Tensor, timestep: Tensor, cond: Conditioning, /) -> list[Tensor]:
        """The tensors added to a U-Net with these inputs, in x's dtype; [] for a weight of 0.

        x: latents [B,C,h,w]. Hints are repeated to B, as for guidance. A ControlNet with global
        pooling adds nothing to negative prompts, as its authors use it. Raises UndustError as
        `ControlNet.forward`, and if B is not a multiple of the number of hints.
        """
        if self.weight == 0:
            return []
        like = self.network.conv_in.weight
        hint = self.hint.to(like)
        if len(hint) > 1:
            if len(x) % len(hint):
                raise UndustError(f"control: {len(hint)} hints do not fit {len(x)} pictures")
            hint = hint.repeat(len(x) // len(hint), 1, 1, 1)
        cond = cond.to(like.device, like.dtype)
        control = self.network(x.to(like), timestep.to(like.device), cond, hint)
        if cond.negative is not None and self.network.pools:
            positive = ~cond.negative.reshape(-1, 1, 1, 1)
            control = [part * positive for part in control]
        return [part.to(x) * self.weight for part in control]


def summed(controls: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The sum of the outputs of several ControlNets, some of which may be empty.

    Raises UndustError for ControlNets of different U-Nets.
    """
    given = [control for control in controls if control]
    if any(
        [part.shape for part in control] != [part.shape for part in given[0]] for control in given
    ):
        raise UndustError("control: the ControlNets are for different models, of other shapes")
    return [reduce(add, parts) for parts in zip(*given, strict=True)]
