"""Order and noise as pure functions of (seed, epoch, index); crops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from undust.training.data import RandomStream, SampleOrder, crop

GROUPS = [[0], [1, 2, 3], [4, 5], [6], [7, 8]]


def seen(size: int, steps: int, order: SampleOrder | None = None) -> list[tuple[object, ...]]:
    """Each sample of the first steps with all that is random about it."""
    order = order or SampleOrder(GROUPS, seed=3)
    rows: list[tuple[object, ...]] = []
    for step in range(steps):
        batch = order.batch(step, size)
        noise = batch.normal(RandomStream.NOISE, (2, 3)).flatten(1).tolist()
        times = batch.uniform(RandomStream.TIME, 2).tolist()
        rows += [
            (batch.sample[k], batch.epoch[k], batch.index[k], *noise[k], *times[k])
            for k in range(size)
        ]
    return rows


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_the_batch_size_changes_nothing(size: int):
    assert seen(size, 60 // size) == seen(1, 60)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_any_step_can_be_drawn_at_any_time(steps: list[int]):
    """As a resumed run does, which begins in the middle."""
    order = SampleOrder(GROUPS, seed=3)
    for step in steps:
        assert order.batch(step, 4) == SampleOrder(GROUPS, seed=3).batch(step, 4)


def test_every_group_comes_once_an_epoch_and_its_members_in_turn():
    rows = seen(1, 5 * 6)
    for epoch in range(6):
        samples = [sample for sample, e, *_ in rows if e == epoch]
        assert sorted(sum(sample in group for sample in samples) for group in GROUPS) == [1] * 5
    for group in GROUPS:
        turns = [sample for sample, *_ in rows if sample in group]
        for start in range(len(turns) - len(group)):
            assert sorted(turns[start : start + len(group)]) == group  # pyright: ignore


def test_epochs_and_seeds_come_in_different_orders():
    many = [[k] for k in range(20)]
    orders = {
        SampleOrder(many, seed).batch(step, 20).sample for seed in range(5) for step in range(5)
    }
    assert len(orders) == 25
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_every_place_in_the_order_is_as_likely():
    """Each of five groups is first in a fifth of 1,000 epochs; four standard deviations allowed."""
    order = SampleOrder([[k] for k in range(5)], seed=0)
    first = torch.tensor([order.batch(epoch, 5).sample[0] for epoch in range(1000)])
    counts = torch.bincount(first, minlength=5)
    assert (counts - 200).abs().max() < 4 * (1000 * 0.2 * 0.8) ** 0.5


def test_streams_samples_and_epochs_share_no_random_numbers():
    order = SampleOrder(GROUPS, seed=3)
    batches = [order.batch(step, 5) for step in range(4)]
    drawn = torch.cat(
        [batch.uniform(stream, 8).flatten() for batch in batches for stream in RandomStream]
    )
    assert len(drawn.unique()) == len(drawn) == 4 * 5 * 8 * len(RandomStream)


def corners(where: Tensor) -> list[tuple[int, int]]:
    """Row and column that crops of 3 pixels out of 5x5 begin at."""
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(len(where), 3, 5, 5)
    first = crop(x, 3, where)[:, 0, 0, 0].long()
    return [divmod(int(number), 5) for number in first]


def test_crops_reach_every_place_and_no_other():
    where = torch.rand(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert set(corners(where)) == {(row, column) for row in range(3) for column in range(3)}
    ends = torch.tensor([[1e-12, 1 - 1e-12], [1 - 1e-12, 1e-12]], dtype=torch.float64)
    assert corners(ends) == [(0, 2), (2, 0)]


def test_a_crop_is_a_piece_of_its_own_picture():
    x = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    cut = crop(x, 3, torch.tensor([[0.5, 0.99], [0.01, 0.5]]))
    assert torch.equal(cut, torch.stack([x[0, :, 1:4, 2:5], x[1, :, 0:3, 1:4]]))
