from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats.locks import FileLock
from undust.report import run
from undust.report.page import write_report

MakeRun = Callable[..., Path]
SESSION = {"started": 1.7e9}


def state(out: Path) -> str:
    return run.read(out, 10**6).state


def test_the_state_of_a_run(make_run: MakeRun):
    def made(name: str, steps: int = 20, **session: object) -> Path:
        recipe = {"run": {"steps": 40, "batch": 8}}
        about = {"kind": "diffusion", "sessions": [SESSION | session], "recipe": recipe}
        return make_run(name, steps, about)

    assert state(made("finished", 40)) == "finished"
    assert state(made("stopped", ended=1.7e9)) == "stopped"
    assert state(made("failed", error="step 21: loss not finite")) == "failed"
    killed = made("killed")
    assert (
        run.read(killed, 10**6).about
        == "It ended at step 20 of 40 without an error, as a killed process does"
    )
    lock = FileLock(killed / "run.lock")
    assert state(killed) == "running"
    assert dict(run.read(killed, 10**6).facts)["Time left"] == "about 40 s"
    lock.release()
    assert dict(run.read(killed, 10**6).facts)["Time"] == "40 s"


class Elements(HTMLParser):
    """The elements of a page, and the attributes of each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_text_of_a_run_becomes_an_element_of_the_page(make_run: MakeRun):
    parser = Elements()
    parser.feed(write_report(make_run()).read_text("utf-8"))
    assert [tag for tag, _ in parser.found].count("script") == 3
    assert all(
        (found["src"] or "").startswith("data:") for tag, found in parser.found if tag == "img"
    )
    assert not any(name.startswith("on") for _, found in parser.found for name in found)
    (policy,) = (found["content"] for _, found in parser.found if "http-equiv" in found)
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"kind": "x", "sessions": 5}',
        b"[" * 10**5,
        b"\xff",
        b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
)
def test_a_damaged_record_is_a_remark(make_run: MakeRun, content: bytes):
    out = make_run()
    (out / "run.json").write_bytes(content)
    page = write_report(out).read_text("utf-8")
    assert "On this page: " in page
    assert "40" in page


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda each: (
            st.lists(each)
            | st.dictionaries(
                st.sampled_from(["run", "steps", "batch", "kind", "patience", "x"]), each
            )
        ),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_any_recipe_in_a_record_gives_a_report(tmp_path: Path, recipe: object):
    tmp_path.joinpath("log.jsonl").write_text('{"step": 1, "loss": 2, "seconds": 0}\n')
    about = {
        "kind": "x",
        "sessions": [{"started": float("inf"), "ended": -1e300}],
        "recipe": recipe,
    }
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert write_report(tmp_path).is_file()


def test_a_run_of_an_earlier_version_and_one_without_steps(make_run: MakeRun, tmp_path: Path):
    old = make_run("old")
    (old / "run.json").unlink()
    assert re.search("run.json is absent", write_report(old).read_text("utf-8"))
    (tmp_path / "new" / "samples").mkdir(parents=True)
    assert "No step is logged yet" in write_report(tmp_path / "new").read_text("utf-8")


def test_folders_without_a_run_are_refused(tmp_path: Path, make_run: MakeRun):
    with pytest.raises(UndustError, match="has no training run"):
        write_report(tmp_path)
    with pytest.raises(UndustError, match="is not a folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UndustError, match="is a folder; --out is the file"):
        write_report(make_run(), tmp_path)
