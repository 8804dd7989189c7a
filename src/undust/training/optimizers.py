"""The optimizers of a run: AdamW, also in 8 bits, or Muon for hidden matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from undust.training.configs import OptimizerConfig
from undust.training.eight_bit import adamw_8bit, load_moments, plain_tensors
from undust.training.muon import Muon

# Weights that are not matrices between hidden states: embeddings, first and last layers.
_NOT_HIDDEN = re.compile(r"embedding(\.weight)?$|(^|\.)conv_(in|out)\.")


def is_hidden_matrix(name: str, value: Tensor) -> bool:
    """Whether Muon trains a weight: a matrix, or a convolution as one, between hidden states."""
    return value.ndim >= 2 and not _NOT_HIDDEN.search(name)


class Optimizers:
    """Updates all parameters at the learning rate of a step.

    With `kind = "muon"` the weights between hidden states (convolutions as matrices [out, in·h·w])
    are updated by orthogonalised momentum (Jordan et al. 2024), scaled to the size of AdamW's
    updates (Liu et al. 2025, eq. 4), so that both use one learning rate.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: OptimizerConfig,
        *,
        half: bool = True,
    ) -> None:
        """half: Muon orthogonalises in bfloat16, else in float32."""
        self._parameters, self.settings = parameters, settings
        # The same memory, seen as matrices.
        self._matrices = {
            name: nn.Parameter(value.detach().view(len(value), -1))
            for name, value in parameters.items()
            if settings.kind == "muon" and is_hidden_matrix(name, value)
        }
        rest = {name: value for name, value in parameters.items() if name not in self._matrices}
        decay = settings.weight_decay
        self._quantized = settings.kind == "adamw-8bit"
        self._adamw: torch.optim.Optimizer | None = None
        if self._quantized:
            self._adamw = adamw_8bit(rest.values(), settings.betas, decay)
        elif rest:
            self._adamw = torch.optim.AdamW(
                rest.values(), betas=settings.betas, weight_decay=decay, fused=True
            )
        self._muon: Muon | None = None
        if self._matrices:
            dtype = torch.bfloat16 if half else torch.float32
            self._muon = Muon(self._matrices.values(), decay, dtype)

    def clip(self) -> Tensor:
        """Limits the gradient's norm to that of the settings; the norm before."""
        return nn.utils.clip_grad_norm_(self._parameters.values(), self.settings.clip)

    def step(self, rate: float) -> None:
        """Updates every parameter with its gradient."""
        for name, matrix in self._matrices.items():
            gradient = self._parameters[name].grad
            matrix.grad = None if gradient is None else gradient.flatten(1)
        for optimizer in filter(None, (self._adamw, self._muon)):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """The state for a checkpoint, by "parameter.moment"; zeros before the first update."""
        return {
            part: tensor
            for name, value, optimizer, moments in self._owned()
            for moment in moments
            for part, tensor in plain_tensors(
                f"{name}.{moment}", optimizer.state[value].get(moment, torch.zeros_like(value))
            )
        }

    def load(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Restores the moments of a checkpoint after `step` updates; KeyError if one is absent."""
        if self._quantized and self._adamw:
            load_moments(self._adamw, self._parameters, moments, step)
            return
        for name, value, optimizer, wanted in self._owned():
            place = value.device
            updates = {"step": torch.tensor(float(step), device=place)}
            optimizer.state[value] = {
                **{moment: moments[f"{name}.{moment}"].to(place, copy=True) for moment in wanted},
                **(updates if name not in self._matrices else {}),
            }

    def _owned(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer, tuple[str, ...]]]:
        """Of each parameter: name, the parameter or its matrix, optimizer, names of its moments."""
        for name, value in self._parameters.items():
            if self._muon and name in self._matrices:
                yield name, self._matrices[name], self._muon, ("momentum_buffer",)
            elif self._adamw:
                yield name, value, self._adamw, ("exp_avg", "exp_avg_sq")
