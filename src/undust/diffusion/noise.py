"""Random numbers as pure functions of (key, counter), the same on every machine and in every batch.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
a counter of four 32-bit words is scrambled by ten rounds under a key of two. Nothing is remembered
between calls: a picture's noise depends on its own seed alone, and training resumes at any place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from undust.errors import UndustError

WORD = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key from round to round

Counter = tuple[int, int, int] | Tensor

START, STEP = 0, 1  # first counter word of a picture: what its noise is for


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Scrambles counters [N, 4] under a key of two words; all words are int64 in [0, 2³²)."""
    a, b, c, d = counter.unbind(1)
    k0, k1 = key
    for _ in range(ROUNDS):
        # The 64-bit product wraps into the sign; masking puts its high word right again.
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            ((right >> 32) & WORD) ^ b ^ k0,
            right & WORD,
            ((left >> 32) & WORD) ^ d ^ k1,
            left & WORD,
        )
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return torch.stack([a, b, c, d], 1)


def uniform(key: int, counter: Counter, shape: Sequence[int]) -> Tensor:
    """Numbers in (0, 1) on a grid of 2⁻³², float64 of the given shape.

    key: 0 … 2⁶⁴−1; counter: three words, each 0 … 2³²−1, or several such counters [B, 3], which
    give [B, *shape]. Numbers come in order: a longer shape begins with those of a shorter one.
    Raises UndustError for a key or a counter outside these.
    """
    if not 0 <= key < 2**64:
        raise UndustError(f"seed: {key} is outside 0 … 2^64 − 1")
    counters = torch.as_tensor(counter, dtype=torch.int64)
    if bool(((counters < 0) | (counters > WORD)).any()):
        raise UndustError("counter: every word has to lie in 0 … 2^32 − 1")
    count = math.prod(shape)
    batch = counters.shape[:-1]
    blocks = torch.arange(-(-count // 4))
    words = counters.reshape(-1, 1, 3).expand(-1, len(blocks), 3)
    words = torch.cat([blocks[:, None].expand(len(words), -1, 1), words], 2)
    drawn = philox(words.flatten(0, 1), (key & WORD, key >> 32)).reshape(len(words), -1)
    return ((drawn[:, :count].double() + 0.5) * 2.0**-32).reshape((*batch, *shape))


def normal(key: int, counter: Counter, shape: Sequence[int]) -> Tensor:
    """Unit normal numbers (Box & Muller 1958), float32; arguments and errors as for `uniform`."""
    count = math.prod(shape)
    radius, angle = uniform(key, counter, (-(-count // 2), 2)).unbind(-1)
    length = (-2 * radius.log()).sqrt()
    angle = 2 * math.pi * angle
    pairs = torch.stack([length * angle.cos(), length * angle.sin()], -1).flatten(-2)
    return pairs[..., :count].reshape((*radius.shape[:-1], *shape)).float()


class PictureNoise:
    """The noise of a batch, one seed a picture: picture k of a batch gets what it gets alone.

    seeds: one for each of the B pictures; shape: of one picture, such as (C, H, W).
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self._draws = 0

    def start(self) -> Tensor:
        """What the pictures begin from, unit normal [B, *shape]."""
        return self._draw(START, 0)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The next draw for a stochastic step, unit normal [B, *shape]; no two steps share one."""
        del sigma, sigma_next
        self._draws += 1
        return self._draw(STEP, self._draws)

    def _draw(self, purpose: int, index: int) -> Tensor:
        return torch.stack([normal(seed, (purpose, index, 0), self.shape) for seed in self.seeds])
