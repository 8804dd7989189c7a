"""Aspect-ratio buckets: their sizes, and an order with batches of one size each."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.training.buckets import BucketOrder, BucketRule, bucket_sizes, nearest
from undust.training.data import Batch, SampleOrder
from undust.training.prior import prior_batch

SQUARE, WIDE, HIGH = (64, 64), (80, 48), (48, 80)

orders = st.builds(
    lambda lengths, buckets, batch, seed: BucketOrder(
        [range(sum(lengths[:k]), sum(lengths[: k + 1])) for k in range(len(lengths))],
        dict(enumerate(buckets)),
        batch,
        seed,
    ),
    st.lists(st.integers(1, 3), min_size=1, max_size=9),
    st.lists(st.sampled_from([SQUARE, WIDE, HIGH]), min_size=27, max_size=27),
    st.integers(1, 7),
    st.integers(0, 9),
)


def test_the_buckets_of_sdxl():
    """Podell et al. 2023, appendix I: in steps of 64, those of about 1024² up to 4 : 1."""
    published = {(512, 2048), (576, 1792), (640, 1600), (704, 1472), (768, 1344), (832, 1216)}
    found = bucket_sizes(1024, 64, 4)
    assert found[0] == (1024, 1024)
    assert published | {(2048, 512), (896, 1152), (960, 1088)} <= {*found}
    for width, height in found:
        assert width % 64 == height % 64 == 0
        assert 0.88 * 1024**2 < width * height <= 1024**2
        assert 1 / 4 <= width / height <= 4
        assert (height, width) in found


@given(st.integers(1, 30), st.integers(1, 16), st.floats(1, 16), st.integers(1, 999))
def test_sizes_and_the_nearest_one(sides: int, multiple: int, ratio: float, width: int):
    size = sides * multiple
    found = bucket_sizes(size, multiple, ratio)
    assert len({*found}) == len(found)
    for w, h in found:
        assert w % multiple == h % multiple == 0 < w * h <= size * size
        assert max(w, h) <= ratio * min(w, h) or w == h
        longer = max(w, h)  # the other side could not be a step longer
        assert longer * (min(w, h) + multiple) > size * size or w == h
    own = nearest((width, 100), found)
    distances = [abs(math.log(width / 100 * h / w)) for w, h in found]
    assert abs(math.log(width / 100 * own[1] / own[0])) == min(distances)


@pytest.mark.parametrize(("size", "words"), [(60, "64 would be one"), (16, "a larger data.size")])
def test_sizes_without_buckets(size: int, words: str):
    with pytest.raises(UndustError, match=words):
        BucketRule(16, 4).sizes(size, 2)


def counters(batch: Batch) -> list[tuple[int, int, int]]:
    return [*zip(batch.sample, batch.epoch, batch.index, strict=True)]


@settings(max_examples=30)
@given(orders, st.integers(1, 60))
def test_every_draw_of_the_plain_order_comes_once_in_a_batch_of_its_size(
    order: BucketOrder, steps: int
):
    """Nothing is lost: what has not come yet waits, less than a batch of each bucket."""
    size = order._size  # pyright: ignore
    buckets = order._buckets  # pyright: ignore
    drawn: list[tuple[int, int, int]] = []
    for step in range(steps):
        batch = order.batch(step, size)
        assert len(batch) == size
        assert len({buckets[sample] for sample in batch.sample}) == 1
        drawn += counters(batch)
    assert len({*drawn}) == len(drawn)
    last = max((epoch, index) for _, epoch, index in drawn)
    groups = len(order.groups)
    until = range(last[0] * groups + last[1] + 1)
    plain = counters(SampleOrder(order.groups, order.seed).draws(until, 0))
    assert {*drawn} <= {*plain}
    waiting = Counter(buckets[sample] for sample, *_ in {*plain} - {*drawn})
    assert all(count < size for count in waiting.values())


@settings(max_examples=30)
@given(orders, st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_any_step_can_be_drawn_at_any_time(order: BucketOrder, steps: list[int]):
    """As a resumed run does; and in parts, as with run.accumulate."""
    size = order._size  # pyright: ignore
    whole = [order.batch(step, size) for step in range(max(steps) + 1)]
    for step in steps:
        fresh = BucketOrder(order.groups, order._buckets, size, order.seed)  # pyright: ignore
        assert fresh.batch(step, size) == whole[step]
        middle = step * size + size // 2
        parts = range(step * size, middle), range(middle, (step + 1) * size)
        assert [
            each for part in parts if part for each in counters(fresh.draws(part, step))
        ] == counters(whole[step])


@settings(max_examples=30)
@given(orders, st.integers(1, 3), st.integers(1, 20))
def test_a_validation_has_the_same_draws_whatever_its_batch_size(
    order: BucketOrder, epochs: int, size: int
):
    buckets = order._buckets  # pyright: ignore
    batches = [*order.whole_epochs(epochs, size, 0)]
    assert all(len({buckets[k] for k in batch.sample}) == 1 for batch in batches)
    assert all(len(batch) <= size for batch in batches)
    found = sorted(each for batch in batches for each in counters(batch))
    [plain] = SampleOrder(order.groups, order.seed).whole_epochs(epochs, 10**6, 0)
    assert found == sorted(counters(plain))


@given(orders, st.integers(1, 9))
@settings(max_examples=30)
def test_class_pictures_beside_batches_of_buckets_are_drawn_once(order: BucketOrder, count: int):
    """The first pictures of their order, each with its own random numbers."""
    classes = SampleOrder([[index] for index in range(count)], seed=1)
    found: Counter[tuple[int, int, int]] = Counter()
    own: set[int] = set()
    size = order._size  # pyright: ignore
    for step in range(8):
        batch = order.batch(step, size)
        beside = prior_batch(classes, batch, order)
        found.update(zip(beside.sample, beside.epoch, beside.index, strict=True))
        own |= {e * len(order.groups) + i for e, i in zip(batch.epoch, batch.index, strict=True)}
    assert set(found.values()) == {1}
    assert {epoch * count + index for _, epoch, index in found} == own
