"""The heat map: the colours of its cells are those of its scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from undust.diffusion.lambda_tables import LambdaTable
from undust.lab.heat_map import HIGH, KNOWN, LEFT, LOW, MIDDLE, TOP, heat_map, write_heat_map

LEVELS = torch.tensor([4.0, 2.0, 1.0])


def table(lambdas: list[list[float]]) -> LambdaTable:
    strengths = torch.tensor(lambdas, dtype=torch.float64)
    weights = (strengths / (1 + strengths)).nan_to_num(1.0)
    return LambdaTable(weights, LEVELS)


def test_cells_are_where_and_as_bright_as_they_should_be():
    inf = torch.inf
    image = heat_map(table([[inf, 1e6, 1e3], [inf, 1, 1e-2], [inf, 1e-4, 0]]))
    side = 560 // 3, 460 // 3
    colours = [
        [image.getpixel((LEFT + side[0] * k + 30, TOP + side[1] * n + 30)) for k in range(3)]
        for n in range(3)
    ]

    def near(found: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> bool:
        pairs = zip(found, low, high, strict=True)
        return all(abs(a - (b + c) / 2) <= 1 for a, b, c in pairs)

    assert [row[0] for row in colours] == [KNOWN] * 3
    for found, low, high in (
        (colours[0][1], HIGH, HIGH),
        (colours[0][2], MIDDLE, HIGH),
        (colours[1][1], MIDDLE, MIDDLE),
        (colours[1][2], MIDDLE, LOW),
        (colours[2][1], LOW, LOW),
        (colours[2][2], LOW, LOW),
    ):
        assert near(found, low, high)


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (3, 2), (25, 25), (1000, 250)])
def test_any_size(rows: int, columns: int, tmp_path: Path):
    levels = torch.linspace(2, 1, rows) if rows > 1 else torch.ones(1)
    write_heat_map(tmp_path / "a.png", LambdaTable(torch.full((rows, columns), 0.4), levels))
    with Image.open(tmp_path / "a.png") as image:
        assert image.width < 1000
        assert image.height < max(600, 1200 * (rows > 460))
