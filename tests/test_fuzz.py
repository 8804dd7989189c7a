"""scripts/fuzz.py: some of its cases, and that it would find what it looks for."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from undust.errors import UndustError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec and spec.loader
    sys.modules["fuzz"] = module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules["fuzz"]


def test_some_of_every_kind(fuzz: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert fuzz.run(300, 1, list(fuzz.KINDS), tmp_path / "kept") == 0
    said = capsys.readouterr().out
    assert all(kind in said for kind in fuzz.KINDS)
    assert "300 cases, seed 1, 0 at fault" in said
    assert not (tmp_path / "kept").exists()


def test_a_case_is_its_seed_kind_and_number(fuzz: ModuleType, tmp_path: Path):
    fuzz.KINDS["pictures"].prepare(tmp_path / "originals")
    written = []
    for seed, number in ((0, 7), (0, 8), (0, 7), (1, 7)):
        fuzz.made("pictures", number, seed, tmp_path / "case")
        written.append((tmp_path / "case" / "some.png").read_bytes())
    assert written[0] == written[2]
    assert len(set(written)) == 3


def refuses(said: str) -> Callable[[], None]:
    def ask() -> None:
        error = UndustError("")
        error.args = (said,)  # as if the class itself did not see to it
        raise error

    return ask


def lasts() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        (lambda: {}["absent"], "KeyError in test_fuzz.py"),
        (lambda: torch.ones(2**26, dtype=torch.uint8), "MiB for 1,000 bytes"),
        (lambda: bytearray(2**26), "MiB for 1,000 bytes"),
        (lambda: sum(range(10**8)), " s"),
        (refuses("two\nlines"), r"an error with ['\n']"),
        (refuses("a" * 2000), "an error of 2000 characters"),
        (refuses(""), "an error of 0 characters"),
        (lambda: os._exit(3), "the process died: exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process died: SIGKILL"),
        (lasts, "no answer within 4 s"),
    ],
)
def test_what_is_wrong_is_found(fuzz: ModuleType, tmp_path: Path, monkeypatch, ask, fault: str):
    """The second case of three is one of a reader that fails."""

    def made(kind: str, number: int, seed: int, folder: Path) -> object:
        return fuzz.Asks([ask if number == 1 else lambda: None], 1000)

    monkeypatch.setattr(fuzz, "made", made)
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "WAIT", 4.0)
    todo = [("any", number) for number in range(3)]
    outcomes = list(fuzz.outcomes(todo, 0, tmp_path))
    assert [outcome.number for outcome in outcomes] == [0, 1, 2]
    assert [bool(outcome.faults) for outcome in outcomes] == [False, True, False]
    assert fault in outcomes[1].faults[0]
