"""Muon: an optimizer of matrices by orthogonalised momentum.

Jordan et al. 2024, with the step size of Liu et al. 2025, eq. 4. torch.optim.Muon computes the same
in bfloat16 only, which is slower than float32 on some processors, and one matrix at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³ and x⁵
ITERATIONS = 5
RESTART = 3  # iterations in the Gram matrix before it is computed anew
WIDE = 2.0  # times as wide as high, from where the Gram matrix saves time
MAX_SMALL = 2**16  # elements of a matrix that is computed together with others of its shape
MAX_TOGETHER = 2**22  # elements of such a batch


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices [..., M, N] with their singular vectors, and singular values about 1 (0.7 to 1.2).

    Newton–Schulz iterations of an odd polynomial of degree 5, computed and returned in `dtype`.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if tall else matrix).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.shape[-1] >= WIDE * x.shape[-2]:
        x = _gram_iterations(x @ x.mT, RESTART) @ x
        x = _gram_iterations(x @ x.mT, ITERATIONS - RESTART) @ x
    else:
        a, b, c = COEFFICIENTS
        for _ in range(ITERATIONS):
            square = x @ x.mT
            x = _multiplied(_multiplied(square, square, square, beta=b, alpha=c), x, x, beta=a)
    return x.mT if tall else x


def _gram_iterations(gram: Tensor, count: int) -> Tensor:
    """The matrix P [..., M, M] for which P X are the Newton–Schulz iterations of X; gram: X Xᵀ.

    Each iteration multiplies X by a polynomial of its Gram matrix, with which all these matrices
    commute, so that no product has the width of X (Zhang, Amsel, Chen & Dao 2026, "Gram
    Newton-Schulz"). Rounding errors of small eigenvalues grow with the iterations; hence a restart.
    """
    a, b, c = COEFFICIENTS
    whole = None
    for number in range(count):
        step = _multiplied(gram, gram, gram, beta=b, alpha=c)  # without a·I
        if number + 1 < count:
            half = _multiplied(step, gram, gram, beta=a)
            gram = _multiplied(half, step, half, beta=a)
        if whole is None:
            whole = step
            whole.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            whole = _multiplied(step, whole, whole, beta=a)
    assert whole is not None
    return whole


def _multiplied(
    left: Tensor, right: Tensor, added: Tensor, *, beta: float, alpha: float = 1
) -> Tensor:
    """The matrices or batches of them: beta · added + alpha · left right."""
    product = torch.addmm if left.ndim == 2 else torch.baddbmm
    return product(added, left, right, beta=beta, alpha=alpha)


class Muon(torch.optim.Optimizer):
    """Updates matrices with the orthogonalised Nesterov momentum of their gradients.

    dtype: of the orthogonalisation. An update is 0.2 · √max(M, N) times the orthogonal matrix, with
    the root mean square of an update of AdamW. `momentum_buffer` is the only state of a matrix.
    Small matrices of one shape are orthogonalised together.
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
            rate, decay = group["lr"], group["weight_decay"]
            for part in _together(group["params"]):
                momenta = [*map(self._momentum, part)]
                if len(part) == 1:  # products of matrices are faster than those of batches of one
                    updates = (orthogonalised(momenta[0], self._dtype),)
                else:
                    updates = orthogonalised(torch.stack(momenta), self._dtype)
                for matrix, update in zip(part, updates, strict=True):
                    matrix.mul_(1 - rate * decay)
                    matrix.add_(update, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        """The Nesterov momentum after the newest gradient."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(momentum, MOMENTUM)


def _together(matrices: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Matrices with gradients, in batches of one shape; large ones alone."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for matrix in matrices:
        if matrix.grad is not None:
            by_shape[matrix.shape].append(matrix)
    for shape, found in by_shape.items():
        count = MAX_TOGETHER // shape.numel() if shape.numel() <= MAX_SMALL else 1
        yield from (found[start : start + count] for start in range(0, len(found), count))
