"""undust lambda search: what is printed and written, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undust.diffusion import lambda_tables
from undust.diffusion.process import EDM
from undust.diffusion.schedules import SCHEDULES
from undust.formats.lambda_files import read_table

Run = Callable[..., Any]
PNG = b"\x89PNG"


def test_the_published_table(undust: Run, here: Path):
    done = undust("lambda", "search", "--out", "table.csv")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "v1 = 0.001, v2 = 1000, v3 = 10: λ is above 1 in 409 of 625 (25 noise levels × 25 frames)",
        "table.csv, table.png",
    ]
    sigmas = SCHEDULES["karras"](EDM(0.002, 700.0), 25)
    found = read_table(here / "table.csv", sigmas, 25)
    assert torch.equal(found.weights, lambda_tables.search(sigmas, 25).weights)
    assert (here / "table.png").read_bytes().startswith(PNG)


def test_options_and_noise_levels_of_a_file(undust: Run, here: Path):
    sigmas = SCHEDULES["karras"](EDM(0.002, 700.0), 50)
    np.save(here / "sigmas_50.npy", sigmas.float().numpy())
    options = ("--frames", 14, "--views", 2, "--derived")
    for levels in (("--sigmas", "sigmas_50.npy"), ("--steps", 50)):
        done = undust("lambda", "search", *options, *levels, "--out", "found.npy")
        assert done.code == 0, done.err
        weights = torch.from_numpy(np.load(here / "found.npy"))
        expected = lambda_tables.search(sigmas, 14, views=2, derived=True).weights
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=0)


def test_the_heat_map_alone(undust: Run, here: Path):
    done = undust("lambda", "search", "--sigmas", "9,3,1", "--frames", 4, "--out", "map.png")
    assert done.out.endswith("(3 noise levels × 4 frames)\nmap.png\n")
    assert [path.name for path in here.iterdir()] == ["map.png"]


def test_what_is_there_stays_if_something_is_wrong(undust: Run, here: Path):
    """And no line says that it is replaced."""
    (here / "a.csv").write_text("mine")
    done = undust("lambda", "search", "--out", "a.csv", "--sigmas", "absent.npy")
    assert done.code == 2
    assert done.err == "undust: absent.npy: No such file or directory\n"
    assert (here / "a.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", "a.txt"), "a.txt: tables and noise levels are in .npy or .csv files"),
        (("--out", "absent/a.csv", "--frames", 1), "--frames"),
        (("--out", "a.csv", "--frames", 2, "--views", 2), "num_frames: 2 is too few"),
        (("--out", "a.csv", "--sigmas", "karas"), "did you mean 'karras'"),
        (("--out", "a.csv", "--sigmas", "absent.npy"), "absent.npy: No such file"),
        (("--out", "a.csv", "--sigmas", "rising.csv"), "rising.csv: sigmas: number 1 is 2 after 1"),
        (("--out", "a.csv", "--sigmas", "notes.txt"), "in .npy or .csv files"),
        (("--out", "a.csv", "--sigmas", "9,3,1", "--steps", 4), "3 noise levels above 0, for 4"),
        (("--out", "a.csv", "--sigmas", "9,3,10"), "the listed σ have to fall"),
        ((), "--out"),
    ],
)
def test_what_is_refused(undust: Run, here: Path, options: tuple[object, ...], said: str):
    (here / "rising.csv").write_text("1\n2\n")
    (here / "notes.txt").write_text("1\n2\n")
    done = undust("lambda", "search", *options)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not {"a.csv", "a.png"} & {path.name for path in here.iterdir()}
