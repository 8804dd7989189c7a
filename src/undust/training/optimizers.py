"""What moves the weights: AdamW, or Muon for the matrices and AdamW for what is left."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from undust.training.recipes import Optimizer
from undust.training.workers import Workers

# Where there is no matrix between two hidden states: tables of vectors, first and last layers.
_NOT_HIDDEN = re.compile(r"embedding(\.weight)?$|(^|\.)conv_(in|out)\.")


class Optimizers:
    """One update of every parameter at a rate that the loop names.

    With `kind = "muon"` the weights between hidden states (convolutions as matrices of [out,
    in·h·w]) move by the orthogonalised momentum (Jordan et al. 2024), scaled to the size of AdamW's
    updates (Liu et al. 2025, eq. 4), so that one learning rate serves both.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], settings: Optimizer, workers: Workers
    ) -> None:
        self._workers = workers
        self._parameters = parameters
        # The same memory, seen as matrices.
        self._matrices = {
            name: nn.Parameter(value.detach().view(len(value), -1))
            for name, value in parameters.items()
            if settings.kind == "muon" and value.ndim >= 2 and not _NOT_HIDDEN.search(name)
        }
        rest = {name: value for name, value in parameters.items() if name not in self._matrices}
        decay = settings.weight_decay
        self._adamw = torch.optim.AdamW(
            rest.values(), betas=settings.betas, weight_decay=decay, fused=True
        )
        self._muons: list[torch.optim.Muon] = []
        self._owned: list[tuple[str, nn.Parameter, torch.optim.Optimizer, tuple[str, ...]]] = [
            (name, value, self._adamw, ("exp_avg", "exp_avg_sq")) for name, value in rest.items()
        ]
        for share in filter(None, _shares(self._matrices, len(workers))):
            matrices = [self._matrices[name] for name in share]
            muon = torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self._muons.append(muon)
            self._owned += [
                (name, matrix, muon, ("momentum_buffer",))
                for name, matrix in zip(share, matrices, strict=True)
            ]

    def step(self, rate: float) -> None:
        """Moves every parameter by the gradient that lies at it."""
        for name, matrix in self._matrices.items():
            gradient = self._parameters[name].grad
            matrix.grad = None if gradient is None else gradient.flatten(1)
        for optimizer in (self._adamw, *self._muons):
            for group in optimizer.param_groups:
                group["lr"] = rate
        self._workers.run(_step, self._muons)
        self._adamw.step()

    def moments(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep, by "parameter.moment"."""
        return {
            f"{name}.{moment}": optimizer.state[value][moment]
            for name, value, optimizer, moments in self._owned
            for moment in moments
        }

    def load(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Takes the moments of a checkpoint after `step` updates; KeyError if one is not there."""
        for name, value, optimizer, wanted in self._owned:
            state = {moment: moments[f"{name}.{moment}"].clone() for moment in wanted}
            if optimizer is self._adamw:
                state["step"] = torch.tensor(float(step))
            optimizer.state[value] = state


def _step(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def _shares(matrices: Mapping[str, Tensor], count: int) -> list[list[str]]:
    """The matrices dealt out so that each share has about the same work.

    Orthogonalising [m, n] with m ≤ n costs about m²n.
    """
    shares: list[list[str]] = [[] for _ in range(count)]
    work = [0] * count
    cost = {name: value.numel() * min(value.shape) for name, value in matrices.items()}
    for name in sorted(matrices, key=lambda name: -cost[name]):
        least = work.index(min(work))
        shares[least].append(name)
        work[least] += cost[name]
    return shares
