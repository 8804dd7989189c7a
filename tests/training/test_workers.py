"""Threads side by side: the order of results, and whose threads are whose."""

from __future__ import annotations

import threading

import torch

from undust.training.workers import Workers


def test_results_come_in_the_order_of_the_parts():
    meet = threading.Barrier(2, timeout=30)

    def square(part: int) -> int:
        meet.wait()  # passes only if two are at work at once
        return part * part

    assert Workers(2).run(square, [3, 1, 4, 1]) == [9, 1, 16, 1]


def test_one_worker_is_the_thread_that_asks():
    assert Workers(1).run(lambda _: threading.current_thread(), [0]) == [threading.current_thread()]


def test_torch_leaves_the_cores_to_the_workers_and_takes_them_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Workers(2).alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with Workers(1).alone():
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
