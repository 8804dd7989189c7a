"""Random numbers as pure functions of (key, counter), equal on all machines and in all batches.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
a counter of four 32-bit words is encrypted in ten rounds with a key of two. There is no state
between calls: a picture's noise depends on its seed only, and training can resume at any step.
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

START, STEP, PATH, BESIDE = 0, 1, 2, 3  # first counter word: the use of a picture's noise
DEPTH = 12  # a Brownian path's cells are 2⁻¹² of an octave of σ
OCTAVES = 2**31  # offset of the octave's number in the second counter word, for σ from 1 to ½


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox of counters [N, 4] with a key of two words; all words are int64 in [0, 2³²)."""
    a, b, c, d = counter.unbind(1)
    k0, k1 = key
    for _ in range(ROUNDS):
        # The 64-bit product may overflow into the sign; masking corrects its high word.
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

    key: 0 … 2⁶⁴−1; counter: three words, each 0 … 2³²−1, or several such counters [B, 3] for
    [B, *shape]. More numbers of the same counter begin with the fewer. Raises UndustError for a key
    or a counter outside these ranges.
    """
    if not 0 <= key < 2**64:
        raise UndustError(f"seed: {key} is outside 0 … 2^64 − 1")
    counters = torch.as_tensor(counter, dtype=torch.int64)
    if bool(((counters < 0) | (counters > WORD)).any()):
        raise UndustError("counter: every word has to be in 0 … 2^32 − 1")
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
    """The noise of a batch, with a seed for each picture, independent of the rest of the batch.

    seeds: one for each of the B pictures; shape: of one picture, such as (C, H, W).
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self._draws = 0

    def start(self, which: int = 0) -> Tensor:
        """The start of a sampling pass, unit normal [B, *shape]; which: the pass, from 0."""
        return self._draw(START, which)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The noise of the next stochastic step, unit normal [B, *shape]."""
        del sigma, sigma_next
        self._draws += 1
        return self._draw(STEP, self._draws)

    def _draw(self, purpose: int, index: int) -> Tensor:
        return torch.stack([normal(seed, (purpose, index, 0), self.shape) for seed in self.seeds])


class BrownianPath(PictureNoise):
    """The noise of a batch along a Brownian path W for each picture, whatever the steps.

    W is in the time 1/σ², in which the reverse equation dx = 2(x − x0)/σ dσ + √(2σ) dw adds noise
    uniformly: steps over (a, b) and (b, c) add the same as one step over (a, c). It is divided into
    octaves, σ = 2⁻ᵏ … 2⁻ᵏ⁻¹, each with an independent increment; an octave is bisected in log σ by
    Brownian bridges (Lévy's construction, as a tree that is not stored: Li et al. 2020) to cells of
    2⁻¹². At any point, and between points in different cells, the path has exactly the law of W;
    two points in one cell (σ closer than 2 in 10⁴) share its last number.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__(seeds, shape)
        self._known: dict[float, Tensor] = {}

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The path's increment from σ to σ_next, scaled to unit normal [B, *shape].

        Raises UndustError for levels that are not above 0 or are equal.
        """
        begin, end = float(sigma), float(sigma_next)
        if not (0 < end < math.inf and 0 < begin < math.inf and begin != end):
            raise UndustError(f"noise: there is no Brownian path from σ = {begin} to {end}")
        return (self.increment(begin, end) / math.sqrt(abs(end**-2 - begin**-2))).float()

    def increment(self, begin: float, end: float) -> Tensor:
        """W(end) − W(begin) of two σ, float64 [B, *shape], of variance |1/end² − 1/begin²|."""
        if begin < end:
            return -self.increment(end, begin)
        first, last = math.floor(-math.log2(begin)), math.floor(-math.log2(end))
        # The ends of the last query are cached: a step begins where the previous one ended.
        known = {place: self._known.get(place) for place in (begin, end)}
        start, stop = (self._within(p) if w is None else w for p, w in known.items())
        self._known = {begin: start, end: stop}
        return sum((self._octave(k) for k in range(first, last)), stop) - start

    def _octave(self, octave: int) -> Tensor:
        """The increment from σ = 2⁻ᵏ to 2⁻ᵏ⁻¹, for the time 4ᵏ … 4ᵏ⁺¹."""
        return math.sqrt(_elapsed(0, 1)) * 2.0**octave * self._draws_at(octave, [0])[0]

    def _within(self, sigma: float) -> Tensor:
        """W at σ minus W at the start of its octave, by bisection to its cell and a last bridge."""
        octave = math.floor(-math.log2(sigma))
        place = -math.log2(sigma) - octave
        cell = int(place * 2**DEPTH)
        # Node 1 is the middle of the octave, nodes 2n and 2n + 1 those of the halves of node n's.
        nodes = [(2**DEPTH + cell) >> (DEPTH - level) for level in range(DEPTH + 1)]
        whole, *draws = self._draws_at(octave, [0, *nodes])
        low, high = 0.0, 1.0
        begin, end = torch.zeros_like(whole), math.sqrt(_elapsed(0, 1)) * 2.0**octave * whole
        for node, draw in zip([*nodes[1:], None], draws, strict=True):
            middle = place if node is None else (low + high) / 2
            share = _elapsed(low, middle) / _elapsed(low, high)
            spread = math.sqrt(share * _elapsed(middle, high)) * 2.0**octave
            value = torch.lerp(begin, end, share) + spread * draw
            if node is None:
                return value
            if node % 2:
                low, begin = middle, value
            else:
                high, end = middle, value
        raise AssertionError("the last bridge returns")

    def _draws_at(self, octave: int, nodes: Sequence[int]) -> Tensor:
        """Unit normal numbers of some nodes of an octave's tree, float64 [nodes, B, *shape]."""
        counters = torch.tensor([[PATH, OCTAVES + octave, node] for node in nodes])
        return torch.stack([normal(s, counters, self.shape) for s in self.seeds], 1).double()


def _elapsed(begin: float, end: float) -> float:
    """The time 4ᵖ between two places p of the octave from σ = 1 to ½."""
    return 4.0**begin * math.expm1((end - begin) * math.log(4))
