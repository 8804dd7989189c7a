"""`undust data check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]
RECIPE = "captions.fields: no picture has a caption in text; "


@pytest.mark.parametrize(
    ("row", "says", "code"),
    [
        ({}, ["0 of 2 pictures", "the data has no captions: put one beside"], 0),
        ({"text": " "}, ["0 of 2 pictures", "columns without any value: text"], 1),
        ({"caption": None}, ["0 of 2 pictures", "columns without any value: caption"], 1),
        (
            {"year": 1990, "tags": ["a"]},
            ["0 of 2 pictures", "no captions, and numbers alone in year:", "tags (a list)"],
            0,
        ),
        ({"artist": "x"}, ["the data has the columns artist (2): name one of them"], 0),
    ],
)
def test_data_without_captions(
    undust: Run, here: Path, row: dict[str, object], says: list[str], code: int
):
    """The exit code is that of data in which something is wrong, which bare pictures are not."""
    lines: list[str] = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(here / name)
        lines.append(json.dumps({"file_name": name, **row}))
    (here / "metadata.jsonl").write_text("\n".join(lines))
    result = undust("data", "check", here)
    assert result.code == code
    text = " ".join(result.out.split())
    assert RECIPE in text
    for each in says:
        assert each in text
    assert "undust data check" not in text  # which is what runs
