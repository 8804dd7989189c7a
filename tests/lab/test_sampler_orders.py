"""The table of orders: whom it has, and what it says of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import sampler_orders as order
from sampler_orders import (
    STATED,
    STATED_STRONG,
    Order,
    Orders,
    all_cases,
    measure,
)
from undust.diffusion.samplers import SAMPLERS
from undust.pipeline import LatentDiffusion


def test_every_sampler_has_a_case():
    cases = all_cases()
    assert {name for name, options in cases if not options} == SAMPLERS.keys()
    labels = {order._label(case) for case in cases}
    assert len(labels) == len(cases)
    assert STATED.keys() <= labels
    assert STATED_STRONG.keys() <= SAMPLERS.keys()


def test_who_misses_what_is_stated_says_why():
    for label, stated in STATED.items():
        registered = SAMPLERS[label.partition("(")[0]].order
        assert bool(stated.missed) == (stated.order != registered), label


def test_what_is_measured():
    seen: list[tuple[int, int]] = []
    cases = [("euler", {}), ("ddpm", {}), ("dpm-fast", {}), ("lcm", {}), ("deis", {"order": 3})]
    found = measure(cases=cases, observe=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 5) for k in range(1, 6)]
    table = [(each.sampler, each.of, each.stated, each.registered) for each in found.orders]
    assert table == [
        ("euler", "end", 1, 1),
        ("ddpm", "distribution", None, 1),
        ("ddpm", "path", None, 1),
        ("dpm-fast", "end", 3, 2),
        ("lcm", "distribution", None, 0),
        ("deis(order=3)", "end", 3, 2),
    ]
    for each in found.orders:
        assert not each.missed
        assert each.gaussian == pytest.approx(each.registered, abs=0.15)
        if each.of != "distribution":
            assert each.mixture == pytest.approx(each.registered, abs=0.15)
    said = {each.sampler: each.why for each in found.orders}
    assert said["euler"] == said["ddpm"] == ""
    assert said["dpm-fast"] == "its last one or two steps are of lower order"
    assert all(len(row) == len(found.columns()) for row in found.rows())
    assert "guidance" not in found.note


def test_a_miss_is_said():
    row = Order(sampler="euler", of="end", stated=1, registered=1, gaussian=1.0, mixture=1.2)
    assert row.missed
    assert row.why == "not the registered 1"
    assert not row.model_copy(update={"mixture": 1.1}).missed
    shown = Orders(orders=(row,)).rows()
    assert shown == [["euler", "end", "1", "1", "1.00", "1.20", "not the registered 1"]]


def test_on_a_model(gaussian: LatentDiffusion, monkeypatch: pytest.MonkeyPatch):
    """The same slopes there as on a Gaussian, as far as float32 shows them."""
    monkeypatch.setattr(order, "REFERENCE_STEPS", 150)
    monkeypatch.setattr(order, "MODEL_STEPS", (24, 36, 48))
    cases = [("euler", {}), ("heun", {}), ("ddpm", {}), ("rk45", {})]
    found = measure(gaussian, cases=cases, pictures=2)
    assert found.rounding is not None and 0 < found.rounding < 1e-5
    euler, heun, _, path, rk45 = found.orders
    assert euler.model == pytest.approx(1, abs=0.15)
    assert heun.model == pytest.approx(2, abs=0.15)
    assert path.of == "path" and path.model == pytest.approx(1, abs=0.25)
    assert rk45.model is None
    assert rk45.why == "on the model all but rounding is gone"
    assert found.columns()[6] == "tiny>"
    assert all(len(row) == len(found.columns()) for row in found.rows())
    assert "2 pictures, guidance 4, float32" in found.note


def test_a_model_that_does_otherwise_says_over_which_steps():
    row = Order(
        sampler="heun",
        of="end",
        stated=2,
        registered=2,
        gaussian=2.0,
        mixture=2.0,
        model=1.5,
        model_steps=(12, 24),
    )
    assert not row.missed
    assert row.why == "on the model over 12 … 24 steps"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(order, "all_cases", lambda: [("euler", {}), ("heun", {})])
    monkeypatch.setattr(sys, "argv", ["sampler_orders.py", "--out", str(tmp_path / "order.md")])
    order.main()
    page = (tmp_path / "order.md").read_text("utf-8")
    assert "benchmarks/sampler_orders.py --out" in page
    assert "| euler | end | 1 | 1 | 1.00 | 1.00 |  |" in page
