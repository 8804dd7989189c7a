from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undust.report import log_table

LINES = st.lists(
    st.binary(max_size=40)
    | st.dictionaries(
        st.sampled_from(["step", "loss", "time", "<b>"]),
        st.none() | st.booleans() | st.floats() | st.integers() | st.integers(0, 9) | st.text(),
    ).map(lambda row: json.dumps(row).encode())
)


@given(LINES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_finite_values_at_rising_steps(tmp_path: Path, lines: list[bytes]):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    for column in log_table.read(path).columns.values():
        assert len(column.steps) == len(column.values) > 0
        assert (np.diff(column.steps) > 0).all()
        assert np.isfinite(column.values).all()


def test_what_is_left_out_is_counted(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    rows = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": NaN, "x": 1e999}', '{"step": 3, "lo']
    path.write_text("\n".join(rows))
    table = log_table.read(path)
    assert (table.rows, table.step) == (2, 1)
    assert table.columns["loss"].not_finite == 1
    assert table.notes == [
        "log.jsonl has 1 line that is not a row of a step, such as a cut one",
        "x has no finite value",
    ]


def test_of_a_step_logged_twice_the_later_row_counts(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    rows = [(1, 5.0), (2, 6.0), (1, 7.0), (3, 8.0)]
    path.write_text("".join(f'{{"step": {step}, "loss": {loss}}}\n' for step, loss in rows))
    column = log_table.read(path).columns["loss"]
    assert column.steps.tolist() == [1, 2, 3]
    assert column.values.tolist() == [7, 6, 8]
