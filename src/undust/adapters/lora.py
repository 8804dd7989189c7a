"""The mathematics of a LoRA's change of one module, in float32 at least.

LoRA: Hu et al. 2021, eq. 3; LoHa and LoKr: Yeh et al. 2023 (LyCORIS), section 3, LoHa first in
Hyeon-Woo et al. 2021, LoKr in Edalati et al. 2022; DoRA: Liu et al. 2024, eq. 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.formats.lora.factors import Factors, Hadamard, Kronecker, Product
from undust.formats.lora.file import WeightDelta


def delta(change: WeightDelta, weight: Tensor) -> Tensor:
    """What the change adds to a weight when it is worn whole: a tensor of the weight's shape.

    weight: as it is without any change, in the precision and place to compute in. With a magnitude
    m the weight becomes m·(W + ΔW)/‖W + ΔW‖, the norm over all axes that m has no length in.
    """
    if change.weight is None:
        added = torch.zeros_like(weight)
    else:
        added = change.scale * _matrix(change.weight, weight).reshape(weight.shape)
    if change.magnitude is None:
        return added
    magnitude = change.magnitude.to(weight)
    axes = [axis for axis, length in enumerate(magnitude.shape) if length == 1]
    whole = weight + added
    norm = whole.square().sum(axes, keepdim=True).sqrt()
    # A direction without length stays 0, whatever its magnitude.
    return whole * (magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny)) - weight


def low_rank(product: Product, like: Tensor) -> tuple[Tensor, Tensor]:
    """The same matrix as up [out, r] and down [r, in·kernel] alone, any core being within down."""
    up, down = product.up.to(like), product.down.to(like)
    if product.core is not None:
        down = torch.einsum("pqk,qi->pik", product.core.to(like), down).flatten(1)
    return up, down


def apply(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the module gives with another weight and bias; the modules are those of `CHANGED`."""
    match module:
        case nn.Linear():
            return F.linear(x, weight, bias)
        case nn.Conv2d():
            stride, padding, dilation = module.stride, module.padding, module.dilation
            return F.conv2d(x, weight, bias, stride, padding, dilation, module.groups)
        case nn.LayerNorm():
            return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
        case nn.GroupNorm():
            return F.group_norm(x, module.num_groups, weight, bias, module.eps)
        case _:
            raise TypeError(f"{type(module).__name__} is not linear in its weight")


def apply_low_rank(module: nn.Module, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """up·(down·x) of a linear layer or a convolution, without making the matrix up·down."""
    if isinstance(module, nn.Conv2d):
        into = (module.in_channels, *module.kernel_size)
        return F.conv2d(apply(module, x, down.unflatten(1, into)), up[:, :, None, None])
    return F.linear(F.linear(x, down), up)


def _matrix(factors: Factors, like: Tensor) -> Tensor:
    """The factors multiplied: [out, in·kernel], or [n] for a norm."""
    match factors:
        case Tensor():
            return factors.to(like)
        case Product():
            up, down = low_rank(factors, like)
            return up @ down
        case Hadamard():
            return _matrix(factors.left, like) * _matrix(factors.right, like)
        case Kronecker():
            return torch.kron(_matrix(factors.left, like), _matrix(factors.right, like))
