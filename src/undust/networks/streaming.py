"""The first stage's layers on large pictures, in strips of rows, exact up to rounding.

Decoding a picture in tiles makes seams, because GroupNorm's statistics and attention depend on the
whole picture. Here each layer is computed in strips instead: norms gather their statistics from all
strips before the first is normalised, attention has the keys and values of the whole picture, and a
convolution reads the rows next to its strip. This saves the memory of intermediate results.

Inputs are single pictures [1,C,H,W], stored in `torch.channels_last`, where rows are contiguous.
Nothing here is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.networks.attention import PixelAttention, attend
from undust.networks.layers import Downsample, ResnetBlock, Upsample
from undust.networks.stored import computes_in

ROWS = 16  # of a strip: few enough for the allocator to reuse the memory


@dataclass(frozen=True)
class Strips:
    """A picture of `height` rows; `rows(top, bottom)` computes some of them on every call."""

    height: int
    rows: Callable[[int, int], Tensor]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Each strip from top to bottom, with the index of its first row."""
        for top in range(0, self.height, ROWS):
            yield top, self.rows(top, min(top + ROWS, self.height))


def held(x: Tensor) -> Strips:
    """A picture [1,C,H,W] in memory."""
    return Strips(x.shape[2], lambda top, bottom: x[:, :, top:bottom])


def kept(x: Strips, over: Tensor | None = None) -> Tensor:
    """All rows of a picture, computed once: [1,C,H,W]; over: a picture whose memory is reused.

    x may depend on rows of `over` up to one strip away: a strip is written only after the next one
    has been computed.
    """
    strips = iter(x)
    top, rows = next(strips)
    if over is None:
        shape = (1, rows.shape[1], x.height, rows.shape[3])
        form = torch.channels_last
        over = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=form)
    for following in strips:
        over[:, :, top : top + rows.shape[2]] = rows
        top, rows = following
    over[:, :, top:] = rows
    return over


def convolved(conv: nn.Conv2d, x: Strips, pad: tuple[int, int] | None = None) -> Strips:
    """A convolution; pad: zeros before and after height and width, None for the layer's own."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    weight = conv.weight.to(computes_in(conv))  # once for all strips
    before, after = pad or (int(conv.padding[0]),) * 2

    def rows(top: int, bottom: int) -> Tensor:
        first, last = stride * top - before, stride * (bottom - 1) - before + size
        seen = x.rows(max(first, 0), min(last, x.height))
        seen = F.pad(seen, (before, after, max(-first, 0), max(last - x.height, 0)))
        return F.conv2d(seen, weight, conv.bias, conv.stride)

    return Strips((x.height + before + after - size) // stride + 1, rows)


def normed(norm: nn.GroupNorm, x: Strips) -> Strips:
    """A GroupNorm, computed as a batch norm with given statistics."""
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    mean, variance = _statistics(x, norm, dtype)
    weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)

    def rows(top: int, bottom: int) -> Tensor:
        return F.batch_norm(x.rows(top, bottom), mean, variance, weight, bias, eps=norm.eps)

    return Strips(x.height, rows)


def activated(norm: nn.GroupNorm, x: Strips) -> Strips:
    """A GroupNorm followed by SiLU."""
    y = normed(norm, x)
    return Strips(y.height, lambda top, bottom: F.silu(y.rows(top, bottom), inplace=True))


def streamed(layer: nn.Module, x: Strips) -> Strips:
    """A layer of a first stage applied to a picture."""
    match layer:
        case ResnetBlock():
            return resnet(layer, x)
        case PixelAttention():
            return attended(layer, x)
        case Upsample():
            return upsampled(layer, x)
        case Downsample():
            return downsampled(layer, x)
        case _:
            raise TypeError(f"{type(layer).__name__} cannot be streamed")


def resnet(block: ResnetBlock, x: Strips) -> Strips:
    """A residual block without time embedding; the result reuses the first half's memory."""
    h = kept(convolved(block.conv1, activated(block.norm1, x)))
    y = convolved(block.conv2, activated(block.norm2, held(h)))
    skip = x if block.conv_shortcut is None else convolved(block.conv_shortcut, x)
    both = Strips(y.height, lambda top, bottom: y.rows(top, bottom).add_(skip.rows(top, bottom)))
    return held(kept(both, over=h))


def attended(block: PixelAttention, x: Strips) -> Strips:
    """Attention of each strip's pixels to the whole picture."""
    y = held(kept(normed(block.group_norm, x) if block.group_norm else x))
    pixels = _tokens(y.rows(0, y.height))
    k, v = block.to_k(pixels), block.to_v(pixels)

    def rows(top: int, bottom: int) -> Tensor:
        before = x.rows(top, bottom)
        tokens = block.to_out(attend(block.to_q(_tokens(y.rows(top, bottom))), k, v, heads=1))
        return before + tokens.transpose(1, 2).reshape(before.shape)

    return held(kept(Strips(x.height, rows)))


def upsampled(layer: Upsample, x: Strips) -> Strips:
    """Twice the size; the only layer whose result is not stored."""

    def rows(top: int, bottom: int) -> Tensor:
        first, last = top // 2, (bottom + 1) // 2
        doubled = F.interpolate(x.rows(first, last), scale_factor=2.0, mode="nearest")
        return doubled[:, :, top - 2 * first : bottom - 2 * first]

    return convolved(layer.conv, Strips(2 * x.height, rows))


def downsampled(layer: Downsample, x: Strips) -> Strips:
    """Half the size."""
    return held(kept(convolved(layer.conv, x, None if layer.padding else (0, 1))))


def _statistics(x: Strips, norm: nn.GroupNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel's group over the whole picture, both [C] in `dtype`.

    Combined over strips, then over channels, after Chan, Golub & LeVeque 1979. The accumulators are
    allocated before the first strip: small allocations that stay between large ones would fragment
    the heap to twice its size.
    """
    mean = torch.zeros(norm.num_channels, dtype=dtype, device=norm.weight.device)
    squares = torch.zeros_like(mean)  # of distances from it: means along rows, summed over them
    for above, rows in x:
        share = rows.shape[2] / (above + rows.shape[2])
        centre = rows.mean((0, 2, 3), dtype=dtype)
        within = (rows - centre[:, None, None]).square_().mean((0, 2, 3))
        moved = centre.sub_(mean)
        squares.add_(within.add_(moved.square(), alpha=1 - share).mul_(rows.shape[2]))
        mean.add_(moved, alpha=share)
    means = mean.unflatten(0, (norm.num_groups, -1))
    variances = squares.div_(x.height).view_as(means)
    centres = means.mean(1, keepdim=True)
    variances = (variances + (means - centres).square()).mean(1, keepdim=True)
    return centres.expand_as(means).flatten(), variances.expand_as(means).flatten()


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
