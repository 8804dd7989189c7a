"""Files of tables and noise levels: exact round trips, and one line for anything else."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion import lambda_tables
from undust.diffusion.process import EDM
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.formats.lambda_files import LIMIT, read_sigmas, read_table, write_table

SIGMAS = SCHEDULES["karras"](EDM(0.002, 700.0), 5)
TABLE = lambda_tables.search(SIGMAS, 3)
suffixes = pytest.mark.parametrize("suffix", [".npy", ".csv", ".NPY"])


def npy(array: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


@suffixes
def test_a_table_comes_back_to_the_bit(suffix: str, tmp_path: Path):
    path = tmp_path / f"table{suffix}"
    write_table(path, TABLE)
    found = read_table(path, SIGMAS, 3)
    assert torch.equal(found.weights, TABLE.weights)
    assert torch.equal(found.levels, SIGMAS[:-1])


def test_numpy_reads_them(tmp_path: Path):
    for name, read in {"a.npy": np.load, "a.csv": lambda p: np.loadtxt(p, delimiter=",")}.items():
        write_table(tmp_path / name, TABLE)
        assert np.array_equal(read(tmp_path / name), TABLE.weights.numpy())
    text = (tmp_path / "a.csv").read_text("utf-8").splitlines()
    assert text[0] == "# guidance strengths, w = λ/(1 + λ); rows: noise levels σ, columns: frames"
    assert text[1].startswith("# v1 = 0.001, v2 = ")
    assert len(text) == 3 + 5


@pytest.mark.parametrize("kind", [">f8", "<f4", ">f4", "<f2"])
def test_floats_of_any_size_and_order(kind: str, tmp_path: Path):
    weights = np.array([[1, 0.5], [1, 0.25], [1, 0]])
    for order in (weights, np.asfortranarray(weights)):
        (tmp_path / "a.npy").write_bytes(npy(order.astype(kind)))
        found = read_table(tmp_path / "a.npy", torch.tensor([3.0, 2.0, 1.0]), 2)
        assert found.weights.tolist() == weights.tolist()


def test_rows_one_after_another(tmp_path: Path):
    """As `search_hypers` has them before its reshape."""
    (tmp_path / "a.npy").write_bytes(npy(TABLE.weights.flatten().numpy()))
    assert torch.equal(read_table(tmp_path / "a.npy", SIGMAS, 3).weights, TABLE.weights)
    with pytest.raises(UndustError, match=r"15 weights do not fit 5 .* would fit 3 frames$"):
        read_table(tmp_path / "a.npy", SIGMAS, 4)


def test_noise_levels(tmp_path: Path):
    """As in NVS-Solver's files: float32, with a final 0."""
    for name, content in {
        "a.npy": npy(SIGMAS.float().numpy()),
        "b.npy": npy(SIGMAS[:-1, None].numpy()),
        "c.csv": "\n".join(map(repr, SIGMAS.tolist())).encode(),
        "d.csv": b"\xef\xbb\xbf# levels\r\n" + ",".join(map(repr, SIGMAS.tolist())).encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        found = read_sigmas(tmp_path / name)
        torch.testing.assert_close(found, SIGMAS[: len(found)], rtol=6e-8, atol=0)
    (tmp_path / "e.csv").write_text("1\n2\n")
    with pytest.raises(UndustError, match=r"e\.csv: sigmas: number 1 is 2 after 1"):
        read_sigmas(tmp_path / "e.csv")


def changed(row: int, frame: int, value: float) -> np.ndarray:
    weights = TABLE.weights.numpy().copy()
    weights[row, frame] = value
    return weights


def claiming(shape: str) -> bytes:
    """A file of three numbers whose header tells of others."""
    return npy(np.ones(3)).replace(b"(3,)", shape.encode()).replace(b" " * (len(shape) - 4), b"", 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npy", npy(changed(2, 1, math.nan)), "noise level 2, frame 1 is nan"),
        ("a.npy", npy(changed(0, 2, 1e6)), r"is 1e\+06; w = λ/\(1 \+ λ\) has to lie in 0 … 1"),
        ("a.npy", npy(changed(0, 2, -1e-9)), "is -1e-09"),
        ("a.npy", npy(TABLE.weights.numpy().T), "noise levels .* and that of frames .* is off"),
        ("a.npy", npy(np.ones((5, 3, 1))), "5 × 3 × 1 weights do not fit"),
        ("a.npy", npy(np.float64(1)), "weights do not fit"),
        ("a.npy", npy(np.ones((1, 1, 1, 1))), "not a table of floats"),
        ("a.npy", npy(np.ones((5, 3), int)), "it has int64 .* not a table of floats"),
        ("a.npy", npy(np.ones((5, 3), complex)), "not a table of floats"),
        ("a.npy", npy(np.array([{}], object), allow_pickle=True), "not a table of floats"),
        ("a.npy", npy(np.ones(3, [("a", "<f8")])), "not a table of floats"),
        ("a.npy", npy(np.ones((5, 3)))[:-1], "it is damaged: 119 bytes"),
        ("a.npy", claiming("(999999999999,)"), "it is damaged: 24 bytes"),
        ("a.npy", claiming("(-1, -3,)"), "it is damaged: 24 bytes"),
        ("a.npy", b"", "it is damaged, or no .npy file"),
        ("a.npy", b"\x93NUMPY\x09\x00", "it is damaged, or no .npy file"),
        ("a.npy", b"PK\x03\x04", "it is damaged, or no .npy file"),
        ("a.csv", b"", "it has no numbers"),
        ("a.csv", b"# only this\n", "it has no numbers"),
        ("a.csv", b"1,1\n1,1,1\n", "line 2 has 3 numbers, the ones before it 2"),
        ("a.csv", b"1,1\n\n1,x\n", "line 3: 'x' is no number"),
        ("a.csv", b"1;1\n", "line 1: '1;1' is no number; commas are between numbers, and points"),
        ("a.csv", b"1\t1\n", r"line 1: '1\\t1' is no number"),
        ("a.csv", b"1,,1\n", "line 1: '' is no number"),
        ("a.csv", b"\xff1", "is not text in UTF-8"),
        ("a.csv", b"1,nan,1\n" * 5, "noise level 0, frame 1 is nan"),
        ("a.csv", b"1,1,1\n" * 4, r"the number of noise levels \(rows\) is off"),
        ("a.txt", b"1", r"tables and noise levels are in \.npy or \.csv files"),
    ],
)  # fmt: skip
def test_what_is_no_table(name: str, content: bytes, said: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UndustError, match=said) as error:
        read_table(tmp_path / name, SIGMAS, 3)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.npy", "a.csv"])
def test_large_files_are_refused_unread(name: str, tmp_path: Path):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)  # of zeros, which take no room
    with pytest.raises(UndustError, match=f"is larger than {LIMIT:,} bytes"):
        read_table(tmp_path / name, SIGMAS, 3)


def refused_or_read(path: Path, content: bytes) -> None:
    """Any content is a table, or one line of an error."""
    path.write_bytes(content)
    read: list[Callable[[], Any]] = [lambda: read_table(path, SIGMAS, 3), lambda: read_sigmas(path)]
    for each in read:
        try:
            each()
        except UndustError as error:
            assert path.name in str(error)
            assert "\n" not in str(error)


cells = st.one_of(st.floats().map(repr), st.text(max_size=5), st.integers().map(str))
lines = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=7)


@given(st.one_of(lines.map("\n".join).map(str.encode), st.binary(max_size=200)))
def test_any_text(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    refused_or_read(tmp_path_factory.getbasetemp() / "some.csv", content)


@given(st.integers(0, 127), st.binary(min_size=1, max_size=8), st.integers(0, 248))
def test_any_array(tmp_path_factory: pytest.TempPathFactory, place: int, other: bytes, cut: int):
    whole = npy(TABLE.weights.numpy())
    assert len(whole) == 248
    path = tmp_path_factory.getbasetemp() / "some.npy"
    refused_or_read(path, whole[:place] + other + whole[place + len(other) :])
    refused_or_read(path, whole[:cut])


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=5, max_size=5))
def test_any_table_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]):
    table = lambda_tables.table_of(torch.tensor(rows, dtype=torch.float64), SIGMAS, 3)
    path = tmp_path_factory.getbasetemp() / "back.csv"
    write_table(path, table)
    assert torch.equal(read_table(path, SIGMAS, 3).weights, table.weights)
