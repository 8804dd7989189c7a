"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

Tan & Le 2019, table 1; the lite variants are in TensorFlow's repository tpu.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.networks.features.base import FeatureNetwork

# Of each stage: number of blocks, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
MEAN, STD = 127.0, 128.0  # of bytes
EPS = 1e-3  # of the batch norms


class Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": with a stride, more on the right and below."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,before,H,W] → [B,after,⌈H/stride⌉,⌈W/stride⌉]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for length in (input.shape[-1], input.shape[-2]):
            whole = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [whole // 2, whole - whole // 2]
        return super().forward(F.pad(input, pads))


class Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018); keys as the published file's."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = before * expansion
        if expansion > 1:
            self._expand_conv = Convolution(before, width, 1)
            self._bn0 = nn.BatchNorm2d(width, EPS)
        self._depthwise_conv = Convolution(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, EPS)
        self._project_conv = Convolution(width, after, 1)
        self._bn2 = nn.BatchNorm2d(after, EPS)
        self._expands, self._skips = expansion > 1, stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """[B,before,H,W] → [B,after,⌈H/stride⌉,⌈W/stride⌉]."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self._skips else h


class EfficientNetLite0(FeatureNetwork):
    """Its maps are the last of each size: 16, 24, 40, 112 and 320 channels."""

    classifies = True

    def __init__(self, name: str = "EfficientNet-Lite0") -> None:
        super().__init__()
        self.name, self.side = name, 224
        self._conv_stem = Convolution(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, EPS)
        blocks: list[Block] = []
        strides: list[int] = []
        width = STEM
        for count, kernel, stride, expansion, channels in STAGES:
            for place in range(count):
                strides.append(1 if place else stride)
                blocks.append(Block(width, channels, kernel, strides[-1], expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._last = [k for k in range(len(blocks)) if [*strides, 2][k + 1] > 1]
        self._conv_head = Convolution(width, HEAD, 1)
        self._bn1 = nn.BatchNorm2d(HEAD, EPS)
        self._fc = nn.Linear(HEAD, CLASSES)
        self.eval()

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B,3,H,W] → five maps [B,C,h,w] at a half, …, a 32nd of the size, rounded up."""
        x = ((x + 1) * 127.5 - MEAN) / STD
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        found: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._last:
                found.append(x)
        return tuple(found)

    def pooled(self, x: Tensor) -> Tensor:
        """The input of its classifier [B,1280]."""
        last = self.maps(self.squares(x))[-1]
        return F.relu6(self._bn1(self._conv_head(last))).mean((2, 3))

    def probabilities(self, x: Tensor) -> Tensor:
        """Of ImageNet's classes [B,1000]."""
        return self._fc(self.pooled(x)).softmax(1)
