"""Standard streams that are closed, left by their reader, full, or of few letters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undust.cli import main
from undust.formats.recipe_png import read_recipe

Run = Callable[..., Any]
SOURCE = Path(__file__).parents[2] / "src"
PETS = ("generate", "a cat", "a dog", "a fish", "--exact", "--steps", "1", "--seed", "1")
NAMES = ["a-cat-1.png", "a-dog-1.png", "a-fish-1.png", "contact-sheet.png"]


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("undust-out/*"))


@pytest.mark.parametrize(
    "closed", [{"stdout"}, {"stderr"}, {"stdin"}, {"stdin", "stdout", "stderr"}]
)
def test_closed_streams_are_nothing_to_write_to(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, closed: set[str]
):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for stream in closed:
        monkeypatch.setattr(sys, stream, None)
    assert main([*PETS, "-", "--model", str(tiny_model)]) == 0
    assert made(here) == NAMES


def test_closed_descriptors_do_not_become_pictures(here: Path, tiny_model: Path):
    """Without a stdout the next file to be opened has its number, and prints would go there."""
    command = [sys.executable, "-m", "undust", *PETS, "--model", str(tiny_model)]
    line = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *command],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=False,
    )
    assert (done.returncode, made(here)) == (0, NAMES)
    assert [read_recipe(here / "undust-out" / name)["prompt"] for name in NAMES[:3]] == [
        *("a cat", "a dog", "a fish")
    ]


@pytest.mark.parametrize("json_", [(), ("--json",)])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_does_not_stop_the_pictures(
    here: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
    json_: tuple[str, ...],
):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, stream, pipe)
        assert main([*PETS, "--model", str(tiny_model), *json_]) == 0
    assert made(here) == NAMES


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_the_output_is_told_at_the_end(
    here: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*PETS, "--model", str(tiny_model)]) == 2
    assert made(here) == NAMES
    assert capsys.readouterr().err.endswith("could not be written: No space left on device\n")


@pytest.mark.parametrize("encoding", ["cp949", "cp1252", "latin-1", "ascii", "utf-16", "utf-8"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "replace"])
@pytest.mark.parametrize(
    "command", ["samplers", "schedules", "guidances", "--help", "generate --help", "x σ웃é😀"]
)
def test_every_letter_can_be_written(
    monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str, command: str
):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = main(command.split(" "))
    out.seek(0)
    err.seek(0)
    text = out.read() + err.read()
    assert code == (2 if command.startswith("x") else 0), text
    assert len(text) > 20


@pytest.mark.parametrize("encoding", ["cp949", "latin-1", "ascii", "utf-8"])
def test_json_can_be_read_whatever_the_encoding(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    prompt = "웃는 고양이 😀 σ é"
    main(["generate", prompt, "--model", str(tiny_model), "--steps", "1", "--json"])
    out.seek(0)
    assert json.loads(out.read())["prompt"] == prompt
