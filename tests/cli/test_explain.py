"""undust explain: a page, and errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_a_page(undust: Run, tiny_model: Path, here: Path):
    asked = ("--model", tiny_model, "--prompt", "a cat", "--seeds", 2, "--steps", 2)
    done = undust("explain", "unet", *asked, "--lang", "ko")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "undust-out/explain/index.html"
    assert "1/1 parts" in done.err
    page = (here / "undust-out/explain/index.html").read_text("utf-8")
    assert '<html lang="ko">' in page
    told = json.loads((here / "undust-out/explain/unet.json").read_text("utf-8"))
    assert (told["prompts"], told["seeds"], told["steps"]) == (["a cat"] * 2, [0, 1], 2)


def test_errors(undust: Run, tiny_model: Path, here: Path):
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    for arguments, said in (
        (("unett",), "did you mean 'unet'"),
        (("unet", "--out", "full"), "not empty"),
        (("unet", "--model", tiny_model), "needs a prompt"),
        (("unet", "--pictures", "absent"), "no such folder"),
        (("unet", "--pictures", "full"), "has 0 pictures"),
        (("unet", "--seeds", 1), "at least 2"),
        (("unet", "--lang", "de"), "'de'"),
    ):
        done = undust("explain", *arguments)
        assert done.code == 2
        assert said in done.err
        assert len(done.err.splitlines()) == 1
    assert not (here / "undust-out" / "explain").exists()
