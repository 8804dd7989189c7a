"""undust trace: a folder, and errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]
QUICK = ("--steps", 2, "--seed", 3, "--size", "32x32")


def test_a_folder(undust: Run, tiny_model: Path, here: Path):
    done = undust("trace", "a (cat:1.3), a dog", "--model", tiny_model, *QUICK)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "undust-out/a-cat-1-3-a-dog-3-trace"
    assert "cat" in done.out
    assert "2/2 steps" in done.err
    assert "2 steps of deis (karras)" in done.err
    told = json.loads((here / "undust-out/a-cat-1-3-a-dog-3-trace/trace.json").read_text("utf-8"))
    assert [word["text"] for word in told["words"]] == ["a", "cat", "a", "dog"]
    again = undust("trace", "a (cat:1.3), a dog", "--model", tiny_model, *QUICK)
    assert again.out.splitlines()[-1] == "undust-out/a-cat-1-3-a-dog-3-trace-2"


def test_it_is_the_picture_that_generate_makes(undust: Run, tiny_model: Path, here: Path):
    options = ("--model", tiny_model, *QUICK, "--guidance", 2, "--sampler", "euler")
    assert undust("trace", "a cat", *options, "--out", "there").code == 0
    assert undust("generate", "a cat", *options, "--out", "one.png").code == 0
    assert undust("rerun", "there/trace.webp", "--out", "two.png").code == 0
    assert (here / "one.png").read_bytes() == (here / "two.png").read_bytes()


def test_errors(undust: Run, tiny_model: Path, here: Path):
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    for arguments, said in (
        (("a cat", "--model", "absent"), "unknown model 'absent'"),
        (("a cat", "--model", tiny_model, "--out", "full"), "not empty"),
        (("a cat", "--model", tiny_model, "--sampler", "eulr"), "did you mean 'euler'"),
        (("a cat", "--model", tiny_model, "--size", "big"), "WIDTHxHEIGHT"),
        (("!", "--model", tiny_model), "no words"),
        ((), "PROMPT"),
    ):
        done = undust("trace", *arguments)
        assert done.code == 2, done
        assert said in done.err
        assert done.err.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["full"]
