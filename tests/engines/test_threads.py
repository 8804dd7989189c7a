"""Threads: one where several wait for other programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from undust.engines import threads
from undust.engines.threads import avoid_waiting


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four threads, and nothing in the environment that says so."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("faster", [1, 4])
def test_the_faster_number_stays(faster: int, monkeypatch: pytest.MonkeyPatch):
    """By times that do not depend on the machine of the test."""
    monkeypatch.setattr(
        threads, "_seconds", lambda: 1.0 if torch.get_num_threads() == faster else 2.0
    )
    assert avoid_waiting() == (faster == 1)
    assert torch.get_num_threads() == faster


def test_layers_are_measured():
    assert 1e-5 < threads._seconds() < 60
    avoid_waiting()
    assert torch.get_num_threads() in (1, 4)


def test_the_environment_is_followed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threads, "_seconds", lambda: float(torch.get_num_threads()))
    assert not avoid_waiting()
    assert torch.get_num_threads() == 4
