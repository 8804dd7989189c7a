"""A LoRA's change of the weights of one module, in float32 or finer.

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
    """The change ΔW of a weight W at LoRA weight 1, of W's shape.

    weight: W, in the dtype and on the device to compute in. With a magnitude m the new weight is
    m·(W + ΔW)/‖W + ΔW‖, with the norm over all axes in which m has length 1.
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
    # A direction of norm 0 stays 0.
    return whole * (magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny)) - weight


def low_rank(product: Product, like: Tensor) -> tuple[Tensor, Tensor]:
    """The product as up [out, r] and down [r, in·kernel], with any core multiplied into down."""
    up, down = product.up.to(like), product.down.to(like)
    if product.core is not None:
        down = torch.einsum("pqk,qi->pik", product.core.to(like), down).flatten(1)
    return up, down


def apply(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The module's output with another weight and bias; for the module types in `CHANGED`."""
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
    """up·(down·x) for a linear layer or a convolution, without computing the matrix up·down."""
    if isinstance(module, nn.Conv2d):
        into = (module.in_channels, *module.kernel_size)
        return F.conv2d(apply(module, x, down.unflatten(1, into)), up[:, :, None, None])
    return F.linear(F.linear(x, down), up)


def _matrix(factors: Factors, like: Tensor) -> Tensor:
    """The product of the factors: [out, in·kernel], or [n] for a norm."""
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
