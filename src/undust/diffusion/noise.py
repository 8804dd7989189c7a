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

START, STEP, PATH, BESIDE = 0, 1, 2, 3  # first counter word of a picture: what its noise is for
DEPTH = 12  # a Brownian path's cells are 2⁻¹² of the way from one σ to half of it
OCTAVES = 2**31  # the octave from 1 to ½ in the second counter word; those before it are below


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

    def start(self, which: int = 0) -> Tensor:
        """What a pass over the pictures begins from, unit normal [B, *shape]; which: 0 or above."""
        return self._draw(START, which)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The next draw for a stochastic step, unit normal [B, *shape]; no two steps share one."""
        del sigma, sigma_next
        self._draws += 1
        return self._draw(STEP, self._draws)

    def _draw(self, purpose: int, index: int) -> Tensor:
        return torch.stack([normal(seed, (purpose, index, 0), self.shape) for seed in self.seeds])


class BrownianPath(PictureNoise):
    """The noise of a batch along one Brownian path W a picture, whatever the steps taken along it.

    W runs in the clock 1/σ², where the reverse equation dx = 2(x − x0)/σ dσ + √(2σ) dw adds noise
    evenly: steps over (a, b) and (b, c) add what one step over (a, c) adds. It is cut into octaves,
    σ = 2⁻ᵏ … 2⁻ᵏ⁻¹, of one independent increment each, and an octave is halved in log σ by Brownian
    bridges (Lévy's construction; as a tree never stored: Li et al. 2020) down to
    cells of 2⁻¹² of it. At any one place, and between places in different cells, the path has
    exactly the law of W; two places in one cell (σ closer than 2 in 10⁴) share its last number.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__(seeds, shape)
        self._known: dict[float, Tensor] = {}

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The path's increment from σ to σ_next, unit normal [B, *shape]; the same when repeated.

        Raises UndustError for levels that are not above 0 or are one and the same.
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
        # The ends of the last two queries are kept: a step begins where one before it ended.
        known = {place: self._known.get(place) for place in (begin, end)}
        start, stop = (self._within(p) if w is None else w for p, w in known.items())
        self._known = {begin: start, end: stop}
        return sum((self._octave(k) for k in range(first, last)), stop) - start

    def _octave(self, octave: int) -> Tensor:
        """The increment from σ = 2⁻ᵏ to 2⁻ᵏ⁻¹, over which the clock 4ᵏ … 4ᵏ⁺¹ runs."""
        return math.sqrt(_elapsed(0, 1)) * 2.0**octave * self._draws_at(octave, [0])[0]

    def _within(self, sigma: float) -> Tensor:
        """W at σ less W where its octave begins, by halving down to its cell and a last bridge."""
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
    """How long the clock 4ᵖ runs between two places p of the octave from σ = 1 to ½."""
    return 4.0**begin * math.expm1((end - begin) * math.log(4))
