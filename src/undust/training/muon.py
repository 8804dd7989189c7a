"""Muon: an optimizer of matrices by orthogonalised momentum.

Jordan et al. 2024, with the step size of Liu et al. 2025, eq. 4. torch.optim.Muon computes the same
in bfloat16 only, which is slower than float32 on some processors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³ and x⁵
ITERATIONS = 5


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix [M, N] with its singular vectors, and singular values of about 1 (0.7 to 1.2).

    Newton–Schulz iterations of an odd polynomial of degree 5, computed and returned in `dtype`.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Updates matrices with the orthogonalised Nesterov momentum of their gradients.

    dtype: of the orthogonalisation. An update is 0.2 · √max(M, N) times the orthogonal matrix, with
    the root mean square of an update of AdamW. `momentum_buffer` is the only state of a matrix.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every matrix that has a gradient, at its group's rate `lr`."""
        del closure
        for group in self.param_groups:
            rate = group["lr"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalised(matrix.grad.lerp(momentum, MOMENTUM), self._dtype)
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))
