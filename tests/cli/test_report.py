"""`undust report` on a run that `undust train` has just made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def test_a_run_has_all_that_its_report_shows(
    undust: Callable, here: Path, first_stage_recipe: Path
):
    assert undust("train", first_stage_recipe, "--out", "run").code == 0
    about = json.loads((here / "run/run.json").read_text("utf-8"))
    row = json.loads((here / "run/log.jsonl").read_text().splitlines()[-1])
    assert (
        about["sessions"][0]["ended"] >= row["time"] - 0.1 >= about["sessions"][0]["started"] - 0.1
    )
    assert row["memory"] > 0
    assert about["data"]["trained"] == len(about["data"]["examples"]) == 8
    assert about["data"]["sizes"] == {"16x16": 8}
    assert about["data"]["captions"]["text"]["longest"] == len("grey 0")
    changed = ("--set", "run.steps=4", "--out", "run", "--resume")
    assert undust("train", first_stage_recipe, *changed).code == 0
    sessions = json.loads((here / "run/run.json").read_text("utf-8"))["sessions"]
    assert [session["step"] for session in sessions] == [0, 3]
    last = (here / "run/run.json").read_bytes()
    assert undust("train", first_stage_recipe, *changed).code == 0  # nothing is left to train
    assert (here / "run/run.json").read_bytes() == last
    done = undust("report", "run")
    assert (done.code, done.out) == (0, "run/report.html\n")
    page = (here / "run/report.html").read_text("utf-8")
    for part in (
        "All 4 steps are done",
        "grey 7",
        "16x16 (8)",
        "Gradient norm",
        "resumed once",
        "First stage",
    ):
        assert part in page
