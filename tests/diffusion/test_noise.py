from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undust.diffusion.noise import BrownianPath, PictureNoise, normal, philox, uniform
from undust.errors import UndustError

# The vectors "philox4x32 10" of the file kat_vectors in Random123, the authors' own library
# (D. E. Shaw Research): counter, key, result.
KNOWN = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_its_authors_answers(
    counter: tuple[int, ...], key: tuple[int, int], result: tuple[int, ...]
):
    assert tuple(philox(torch.tensor([counter]), key)[0].tolist()) == result


def test_words_of_key_and_counter_are_where_they_belong():
    """Counter: the block, then the caller's three words; key: the low word, then the high one."""
    words = philox(torch.tensor([[0, 7, 8, 9], [1, 7, 8, 9]]), (5, 6)).flatten().double()
    assert torch.equal(uniform((6 << 32) + 5, (7, 8, 9), (8,)), (words + 0.5) / 2**32)


def test_normal_is_box_and_mullers():
    u = uniform(3, (0, 0, 0), (2,)).tolist()
    radius = math.sqrt(-2 * math.log(u[0]))
    expected = [radius * math.cos(2 * math.pi * u[1]), radius * math.sin(2 * math.pi * u[1])]
    assert normal(3, (0, 0, 0), (2,)).tolist() == pytest.approx(expected, rel=1e-6)


def test_moments_of_the_normal():
    """Mean, variance, skewness and kurtosis within four standard errors of 0, 1, 0, 3."""
    count = 400_000
    draw = normal(12345, (1, 2, 3), (count,)).double()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((draw**power).mean() - moment) < 4 * math.sqrt(variance / count)
    neighbours = (draw[1:] * draw[:-1]).mean()
    assert abs(neighbours) < 4 / math.sqrt(count)


def test_streams_are_independent():
    """Neighbouring keys, counters and draws share nothing that a correlation would show."""
    count = 50_000
    streams = [
        *(normal(key, (0, 0, 0), (count,)) for key in (0, 1, 2**32, 2**63)),
        *(normal(0, counter, (count,)) for counter in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]),
    ]
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / math.sqrt(count)


def test_numbers_come_in_order_whatever_the_shape():
    long = normal(9, (1, 2, 3), (1001,))
    assert torch.equal(normal(9, (1, 2, 3), (7,)), long[:7])
    assert torch.equal(normal(9, (1, 2, 3), (3, 5, 2)).flatten(), long[:30])
    assert torch.equal(uniform(9, (1, 2, 3), (7,)), uniform(9, (1, 2, 3), (9,))[:7])
    assert normal(9, (1, 2, 3), ()).shape == ()
    assert long.dtype == torch.float32


def test_many_counters_at_once_are_each_alone():
    counters = torch.tensor([[0, 0, 0], [4, 2**32 - 1, 7], [1, 2, 3]])
    for draw in (normal, uniform):
        together = draw(11, counters, (3, 13))
        alone = [draw(11, (a, b, c), (3, 13)) for a, b, c in counters.tolist()]
        assert torch.equal(together, torch.stack(alone))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    normal(0, (0, 0, 0), (10,))
    PictureNoise([1, 2], (4,)).start()
    assert torch.equal(torch.get_rng_state(), before)


def test_picture_k_of_a_batch_is_picture_k_alone():
    seeds, shape, sigma = [7, 2**64 - 1, 0], (4, 9, 7), torch.tensor(1.0)
    batch, alone = PictureNoise(seeds, shape), [PictureNoise([seed], shape) for seed in seeds]
    draws = [batch.start(), *(batch(sigma, sigma) for _ in range(3))]
    for index, one in enumerate(alone):
        own = [one.start(), *(one(sigma, sigma) for _ in range(3))]
        for together, single in zip(draws, own, strict=True):
            assert torch.equal(together[index], single[0])
    flat = torch.stack(draws).flatten(2).reshape(12, -1)
    assert len(flat.unique(dim=0)) == 12


def test_keys_and_counters_outside_their_words_are_refused():
    for key in (-1, 2**64):
        with pytest.raises(UndustError, match=f"seed: {key} is outside"):
            normal(key, (0, 0, 0), (1,))
    for counter in [(-1, 0, 0), (0, 2**32, 0)]:
        with pytest.raises(UndustError, match=r"^counter: "):
            normal(0, counter, (1,))


def test_increments_have_their_variance_and_are_independent():
    """Of any length, within an octave of σ, over many, from near the cells' size on."""
    count = 20_000
    levels = [80.0, 14.0, 13.9, 8.0, 7.0, 1.0, 0.999, 0.4, 0.25, 0.002]
    path = BrownianPath([5], (count,))
    parts = torch.cat([path(torch.tensor(a), torch.tensor(b)) for a, b in pairwise(levels)])
    assert parts.dtype == torch.float32
    assert (parts.mean(1).abs() < 4 / math.sqrt(count)).all()
    assert ((parts.square().mean(1) - 1).abs() < 4 * math.sqrt(2 / count)).all()
    correlation = torch.corrcoef(parts) - torch.eye(len(parts))
    assert correlation.abs().max() < 5 / math.sqrt(count)
    for a, b in pairwise(levels):
        spread = path.increment(a, b).square().mean().item()
        assert spread == pytest.approx(b**-2 - a**-2, rel=4 * math.sqrt(2 / count))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3, unique=True), st.integers(0, 99))
def test_a_path_is_the_sum_of_its_parts(levels: list[float], seed: int):
    """W(a, c) = W(a, b) + W(b, c), whatever was asked before, and there and back is nothing."""
    a, b, c = levels
    whole = BrownianPath([seed], (5,)).increment(a, c)
    path = BrownianPath([seed], (5,))
    torch.testing.assert_close(path.increment(a, b) + path.increment(b, c), whole)
    assert torch.equal(path.increment(a, c), whole)
    assert torch.equal(path.increment(c, a), -whole)


def test_path_k_of_a_batch_is_path_k_alone():
    seeds, shape = [7, 2**64 - 1, 0], (4, 9, 7)
    levels = torch.tensor([14.6, 3.0, 2.9, 0.03], dtype=torch.float64)
    batch, alone = BrownianPath(seeds, shape), [BrownianPath([seed], shape) for seed in seeds]
    assert torch.equal(batch.start(), PictureNoise(seeds, shape).start())
    for a, b in pairwise(levels):
        together = batch(a, b)
        for index, one in enumerate(alone):
            assert torch.equal(together[index], one(a, b)[0])


def test_a_path_has_two_ends_in_the_noise():
    for a, b in [(1.0, 0.0), (1.0, 1.0), (math.inf, 1.0), (-1.0, 2.0), (math.nan, 1.0)]:
        with pytest.raises(UndustError, match=r"^noise: there is no Brownian path from σ"):
            BrownianPath([0], (1,))(torch.tensor(a), torch.tensor(b))
