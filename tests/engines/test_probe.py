"""Measurements of the processor are kept for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undust.engines import probe
from undust.version import __version__


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "_KNOWN", [])
    return tmp_path / "undust" / probe.FILE


def counted(made: list[float]):
    """A measurement, as a new process has it, that gives another number each time."""

    @probe.kept
    def measured() -> float:
        made.append(float(len(made)))
        return made[-1]

    return measured


def test_a_second_process_measures_nothing(file: Path):
    made: list[float] = []
    assert [counted(made)() for _ in range(3)] == [0.0] * 3
    assert json.loads(file.read_text())["numbers"] == {"measured": 0.0}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"place": 1}', '{"numbers": []}', "\x00"])
def test_a_damaged_file_is_replaced(file: Path, content: str):
    made: list[float] = []
    counted(made)()
    file.write_text(content)
    assert counted(made)() == 1.0
    assert counted(made)() == 1.0


@pytest.mark.parametrize("number", ["3.0", None, [1.0], True])
def test_a_number_that_is_none_is_measured(file: Path, number: object):
    made: list[float] = []
    counted(made)()
    file.write_text(json.dumps({**json.loads(file.read_text()), "numbers": {"measured": number}}))
    assert counted(made)() == 1.0


def test_another_processor_or_version_measures_again(file: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[float] = []
    counted(made)()
    monkeypatch.setattr(probe, "__version__", __version__ + "1")
    assert counted(made)() == 1.0
    monkeypatch.setattr(probe, "processor_digits", lambda: "another")
    assert counted(made)() == 2.0


def test_all_are_measured_again_when_asked(file: Path):
    made: list[float] = []
    measured = counted(made)
    assert (measured(), measured()) == (0.0, 0.0)
    probe.forget()
    assert measured() == 1.0


def test_a_folder_that_cannot_be_written_is_no_error(file: Path):
    file.parent.write_text("a file in its place")
    made: list[float] = []
    assert (counted(made)(), counted(made)()) == (0.0, 1.0)
