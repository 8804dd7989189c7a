"""A run's log that somebody else wrote into."""

from __future__ import annotations

import json
from pathlib import Path

from undust.training.log import Log


def test_lines_that_are_no_figures_of_a_step_are_left_out(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    lines = ['{"step": 1}', "5", "[]", "{}", '{"step": "x"}', "[" * 10_000, '{"step": 9}', "{"]
    path.write_bytes("\n".join([*lines, ""]).encode() + b"\xff\xfe\n")
    with Log(tmp_path, 2) as log:
        log.scalars(3, {"loss": 0.5}, 1.0)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 3]
