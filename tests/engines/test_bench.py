"""What is fast on a processor."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import undust
from undust.cli import main
from undust.engines import probe
from undust.engines.bench import DTYPES, KINDS, rates


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that are measured once: less exact, and soon known."""
    monkeypatch.setattr(probe, "ROUNDS", 1)


def test_each_kind_has_a_rate():
    measured = list(rates())
    assert [each.name for each in measured] == list(KINDS)
    for rate in measured:
        present = {dtype for dtype, number in rate.rates.items() if number is not None}
        if rate.name.startswith("the same"):  # in one precision only, if the processor has it
            assert present <= {torch.float32}
        else:
            assert present == set(DTYPES)
        assert all(1e6 < number < 1e15 for number in rate.rates.values() if number is not None)


def test_operations_are_those_of_the_definition():
    for name, (operations, call) in KINDS.items():
        made = call(torch.float32)
        if made is None:
            assert "8 bits" in name and probe.int8_speedup() == 0
            continue
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # whose products are counted
            FlopCounterMode(display=False) as counted,
        ):
            made()
        if not name.startswith("the same"):  # these compute it in other ways
            assert counted.get_total_flops() == operations


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]):
    assert main(["bench"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in KINDS)
    assert re.search(r"^Winograd's convolutions are [\d.]+ × as fast as torch's: ", printed, re.M)
    assert re.search(r"in training, .* are [\d.]+ × as fast as torch's: (not )?used", printed)
    assert f"dtype auto: {probe.fastest_dtype()}" in printed


def test_the_dtype_is_chosen():
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16}[probe.fastest_dtype()]
    assert undust.load("emoji", dtype="auto").dtype == expected
