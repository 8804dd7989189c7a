"""What moves the weights: AdamW, or Muon for the matrices and AdamW for what is left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from undust.training.configs import OptimizerConfig
from undust.training.muon import Muon

# Where there is no matrix between two hidden states: tables of vectors, first and last layers.
_NOT_HIDDEN = re.compile(r"embedding(\.weight)?$|(^|\.)conv_(in|out)\.")


class Optimizers:
    """One update of every parameter at a rate that the loop names.

    With `kind = "muon"` the weights between hidden states (convolutions as matrices of [out,
    in·h·w]) move by the orthogonalised momentum (Jordan et al. 2024), scaled to the size of AdamW's
    updates (Liu et al. 2025, eq. 4), so that one learning rate serves both.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: OptimizerConfig,
        *,
        half: bool = True,
    ) -> None:
        """half: Muon orthogonalises in bfloat16, else in float32."""
        self._parameters = parameters
        # The same memory, seen as matrices.
        self._matrices = {
            name: nn.Parameter(value.detach().view(len(value), -1))
            for name, value in parameters.items()
            if settings.kind == "muon" and value.ndim >= 2 and not _NOT_HIDDEN.search(name)
        }
        rest = {name: value for name, value in parameters.items() if name not in self._matrices}
        decay = settings.weight_decay
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest.values(), betas=settings.betas, weight_decay=decay, fused=True)
        ]
        if self._matrices:
            dtype = torch.bfloat16 if half else torch.float32
            self._optimizers.append(Muon(self._matrices.values(), decay, dtype))

    def step(self, rate: float) -> None:
        """Moves every parameter by the gradient that lies at it."""
        for name, matrix in self._matrices.items():
            gradient = self._parameters[name].grad
            matrix.grad = None if gradient is None else gradient.flatten(1)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep, by "parameter.moment"."""
        return {
            f"{name}.{moment}": optimizer.state[value][moment]
            for name, value, optimizer, moments in self._owned()
            for moment in moments
        }

    def load(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Takes the moments of a checkpoint after `step` updates; KeyError if one is not there."""
        for name, value, optimizer, wanted in self._owned():
            optimizer.state[value] = {
                **{moment: moments[f"{name}.{moment}"].clone() for moment in wanted},
                **({"step": torch.tensor(float(step))} if name not in self._matrices else {}),
            }

    def _owned(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer, tuple[str, ...]]]:
        """Each parameter: its name, itself or its matrix, what moves it, and that one's moments."""
        for name, value in self._parameters.items():
            if name in self._matrices:
                yield name, self._matrices[name], self._optimizers[1], ("momentum_buffer",)
            else:
                yield name, value, self._optimizers[0], ("exp_avg", "exp_avg_sq")
