"""3×3 convolutions in 2.25 or 4 times fewer multiplications (Winograd 1980; Lavin & Gray 2015).

The picture is cut into overlapping tiles of (m+2)² pixels, which give m² pixels of the output each.
A convolution is a product of polynomials, so it is pointwise once tiles and kernels are evaluated
at m+1 points and infinity (Toom 1963, Cook 1966): (m+2)² products of matrices over the channels in
place of 9·m². Evaluation and interpolation are matrix products too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from undust.engines.weights import state, trains
from undust.networks.stored import StoredConv2d, computes_in

# The first m + 1 are used. With 1/2 in place of 2 the rounding error of m = 4 is a third smaller.
POINTS = (0, 1, -1, 0.5, -2)
SIZES = (2, 4)  # m: output pixels of a tile along a side
MANY_TILES = 64  # of m = 4: with fewer, reading the larger kernels costs more than it saves
MIN_CHANNELS = 128  # with fewer, the transforms cost more than they save
MIN_TRAINED_CHANNELS = 64  # the same of a convolution and its gradients
MIN_PIXELS = 64  # of a batch: with fewer, transforming large kernels costs more than it saves
CHUNK = 128  # tiles at once, whose values stay in the processor's cache
KEPT = 2**24  # bytes of a layer's transformed kernels; larger ones are made at each call

Chunk = tuple[slice, slice]  # of pictures, and of rows of tiles


@cache
def matrices(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """A [m,m+2], G [m+2,3] and B [m+2,m+2] of float64: y = A·((G·g)∘(B·d)).

    y [m] is the correlation of a kernel g [3] with pixels d [m+2] (Lavin & Gray 2015, eq. 4).
    """
    points = np.array(POINTS[: m + 1], dtype=float)
    a, g, b = np.zeros((m, m + 2)), np.zeros((m + 2, 3)), np.zeros((m + 2, m + 2))
    for k, point in enumerate(points):
        others = np.delete(points, k)
        a[:, k] = point ** np.arange(m)
        g[k] = point ** np.arange(3) / np.prod(point - others)
        b[k, :-1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1  # the point at infinity
    b[-1] = np.poly(points)[::-1]
    return torch.from_numpy(a), torch.from_numpy(g), torch.from_numpy(b)


@cache
def _in_two_dimensions(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """A⊗A [m²,(m+2)²], G⊗G [(m+2)²,9] and B⊗B [(m+2)²,(m+2)²] in float32."""
    with torch.inference_mode(False):
        a, g, b = (torch.kron(each, each).float() for each in matrices(m))
        return a, g, b


def transformed(weight: Tensor, m: int) -> Tensor:
    """Kernels [K,C,3,3] at the points: [(m+2)²,C,K] in float32, G·g·Gᵀ.

    In the order of the weight in memory, whose positions are the first dimensions or the last.
    """
    filters, channels = weight.shape[:2]
    evaluation = _in_two_dimensions(m)[1]
    if weight.is_contiguous():
        kernels = weight.float().view(filters * channels, 9).T
        return (evaluation @ kernels).view(-1, filters, channels).transpose(1, 2)
    kernels = weight.float().permute(2, 3, 1, 0).reshape(9, channels * filters)
    return (evaluation @ kernels).view(-1, channels, filters)


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Pictures [B,C,H,W] with `transformed` kernels [(m+2)²,C,K], padded by 1 → [B,K,H,W].

    In float32; the result is stored as `torch.channels_last`.
    """
    (batch, channels, height, width), (points, _, filters) = x.shape, kernels.shape
    side = round(points**0.5)
    m = side - 2
    interpolation, _, evaluation = _in_two_dimensions(m)
    down, across = -(-height // m), -(-width // m)  # tiles
    whole = x.new_empty(batch, down, m, across, m, filters)
    output = whole.permute(2, 4, 0, 1, 3, 5)
    for chunk, padded in _padded(x, m, down, across):
        part = padded.unfold(1, side, m).unfold(2, side, m).permute(4, 5, 0, 1, 2, 3)
        count = part[0, 0, ..., 0].numel()  # part: [m+2,m+2,b,h,w,C]
        values = evaluation @ part.reshape(points, count * channels)
        values = torch.bmm(values.view(points, count, channels), kernels)
        found = interpolation @ values.view(points, count * filters)
        target = output[:, :, *chunk]
        torch.add(found.view(target.shape), 0 if bias is None else bias, out=target)
    pixels = whole.view(batch, m * down, m * across, filters)
    return pixels[:, :height, :width].permute(0, 3, 1, 2)


def kernel_gradient(x: Tensor, dy: Tensor, m: int) -> Tensor:
    """The gradient [K,C,3,3] of `convolve`'s kernels from that of its result, dy [B,K,H,W].

    It is linear in the transformed kernels, so each step of the algorithm is transposed.
    """
    (batch, channels, height, width), filters = x.shape, dy.shape[1]
    interpolation, evaluation_of_kernels, evaluation = _in_two_dimensions(m)
    side, down, across = m + 2, -(-height // m), -(-width // m)
    whole = dy.new_zeros(batch, m * down, m * across, filters)
    whole[:, :height, :width] = dy.permute(0, 2, 3, 1)
    tiles = whole.view(batch, down, m, across, m, filters).permute(2, 4, 0, 1, 3, 5)
    total = x.new_zeros(side**2, channels, filters)
    for chunk, padded in _padded(x, m, down, across):
        part = padded.unfold(1, side, m).unfold(2, side, m).permute(4, 5, 0, 1, 2, 3)
        count = part[0, 0, ..., 0].numel()
        values = evaluation @ part.reshape(side**2, count * channels)
        slopes = interpolation.T @ tiles[:, :, *chunk].reshape(m**2, count * filters)
        values = values.view(-1, count, channels).transpose(1, 2)
        total.baddbmm_(values, slopes.view(-1, count, filters))
    found = evaluation_of_kernels.T @ total.view(side**2, channels * filters)
    return found.view(3, 3, channels, filters).permute(3, 2, 0, 1)


class WinogradConvolution(torch.autograd.Function):
    """`convolve` with gradients, which are computed by the same algorithm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, m: int) -> Tensor:
        """Pictures [B,C,H,W] with kernels [K,C,3,3], padded by 1 → [B,K,H,W]."""
        ctx.save_for_backward(x, weight)
        ctx.m = m
        return convolve(x, transformed(weight, m), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Of pictures, kernels and bias; direct where gradients of them are needed in turn."""
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            ones, shape = [1, 1], (False, [0, 0], 1)
            found = torch.ops.aten.convolution_backward(
                dy, x, weight, [len(weight)], ones, ones, ones, *shape, wanted
            )
            return *found, None
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            convolve(dy, transformed(turned, ctx.m), None) if wanted[0] else None,
            kernel_gradient(x, dy, ctx.m) if wanted[1] else None,
            dy.sum((0, 2, 3)) if wanted[2] else None,
            None,
        )


def _padded(x: Tensor, m: int, down: int, across: int) -> Iterator[tuple[Chunk, Tensor]]:
    """The pixels [b,H',W',C] of each chunk of the tiles of pictures [B,C,H,W], in one buffer.

    With a row and a column of zeros before the pictures, and zeros after them.
    """
    batch, channels, _, width = x.shape
    pixels, buffer = x.permute(0, 2, 3, 1), x.new_empty(0)
    for pictures, rows in _chunks(batch, down, across):
        shape = len(range(batch)[pictures]), m * len(range(down)[rows]) + 2
        if shape != buffer.shape[:2]:
            buffer = x.new_zeros(*shape, m * across + 2, channels)
        top = m * rows.start - 1
        seen = pixels[pictures, max(top, 0) : top + shape[1]]
        first, last = max(-top, 0), max(-top, 0) + seen.shape[1]
        buffer[:, :first] = buffer[:, last:] = 0
        buffer[:, first:last, 1 : width + 1] = seen
        yield (pictures, rows), buffer


def _chunks(batch: int, down: int, across: int) -> Iterator[Chunk]:
    """The pictures and rows of tiles of each chunk: some rows of one picture, or some pictures."""
    rows = max(1, CHUNK // across) if down * across > CHUNK else down
    pictures = max(1, CHUNK // (down * across))
    for picture in range(0, batch, pictures):
        for row in range(0, down, rows):
            yield slice(picture, picture + pictures), slice(row, row + rows)


def tile_size(x: Tensor, weight: Tensor, *, learns: bool = False) -> int:
    """The m for pictures [B,C,H,W] and kernels [K,C,3,3]; 0 for a direct convolution.

    learns: whether gradients are computed too.
    """
    if not _is_large(weight, MIN_TRAINED_CHANNELS if learns else MIN_CHANNELS):
        return 0
    batch, _, height, width = x.shape
    m = 4 if batch * -(-height // 4) * -(-width // 4) >= MANY_TILES else 2
    return m if batch * height * width >= MIN_PIXELS or _is_kept(weight, m) else 0


class WinogradConv2d(StoredConv2d):
    """A 3×3 convolution with stride 1 and padding 1; direct under autocast."""

    _kept: tuple[tuple[int, ...], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,C,H,W] → [B,K,H,W]."""
        learns = trains(input, self.weight)
        exact = not torch.is_autocast_enabled("cpu")
        m = tile_size(input, self.weight, learns=learns) if exact else 0
        if m and learns:
            return cast("Tensor", WinogradConvolution.apply(input, self.weight, self.bias, m))
        if m:
            return convolve(input, self._kernels(m), self.bias)
        if _is_large(self.weight) and not self.weight.requires_grad:  # and the picture is small
            _store(self.weight, (0, 1, 2, 3))  # as torch's own layer wants it
            return super().forward(input.contiguous())
        # The output has the format too: from here on all of the network is in it.
        return super().forward(input.contiguous(memory_format=torch.channels_last))

    def _kernels(self, m: int) -> Tensor:
        """The transformed weight; a small one is kept until the weight is changed in place.

        None of a network that is trained: its weights change at each step, and their memory is the
        optimizer's too.
        """
        weight = self.weight
        if weight.requires_grad:
            return transformed(weight, m)
        if not _is_kept(weight, m):
            if weight.dtype == torch.float32:  # others may be mapped from their file
                _store(weight, (2, 3, 1, 0))  # whose products are faster
            return transformed(weight, m)
        now = m, *state(weight)
        kept = self._kept  # in one access: another thread may replace it
        if kept is None or kept[0] != now:
            kept = self._kept = now, transformed(weight, m).contiguous()
        return kept[1]


def _is_kept(weight: Tensor, m: int) -> bool:
    """Whether the transformed kernels are kept."""
    return weight.numel() / 9 * (m + 2) ** 2 * torch.float32.itemsize <= KEPT


def _store(weight: Tensor, order: tuple[int, ...]) -> None:
    """Changes the order of the dimensions of a weight [K,C,3,3] in memory, not its values."""
    if not weight.is_inference() and not weight.permute(order).is_contiguous():
        back = [order.index(dimension) for dimension in range(4)]
        with torch.inference_mode(False):
            weight.data = weight.data.permute(order).contiguous().permute(back)


def can_gain(network: nn.Module) -> bool:
    """Whether a network has convolutions that are large enough to gain."""
    return any(_is_large(conv.weight) for conv in _convolutions(network))


def replace_convolutions(network: nn.Module) -> None:
    """Makes the 3×3 convolutions of a network `WinogradConv2d`, in place.

    Small ones too: all then have the memory format of the large ones.
    """
    for conv in [*_convolutions(network)]:
        conv.__class__ = WinogradConv2d  # it keeps weights and hooks


def _convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions that can be replaced."""
    for conv in network.modules():
        if (
            isinstance(conv, nn.Conv2d)
            and type(conv) in (nn.Conv2d, StoredConv2d)
            and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
            and (conv.dilation, conv.groups) == ((1, 1), 1)
            and conv.padding_mode == "zeros"
            and computes_in(conv) == torch.float32
            and conv.weight.device.type == "cpu"
        ):
            yield conv


def _is_large(weight: Tensor, least: int = MIN_CHANNELS) -> bool:
    return min(weight.shape[:2]) >= least
