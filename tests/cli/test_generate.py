"""undust generate and undust rerun, as a person or a script calls them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from undust.cli.output import slug
from undust.formats.recipe_png import read_recipe, write_picture

Run = Callable[..., Any]


def test_one_picture_goes_to_the_default_folder(undust: Run, tiny_model: Path):
    done = undust("generate", "a smiling cat", "--model", tiny_model, "--steps", 2, "--seed", 7)
    assert done.code == 0
    assert done.out == "undust-out/a-smiling-cat-7.png\n"
    assert "2 steps of deis (karras), guidance 4, model tiny" in done.err
    with Image.open("undust-out/a-smiling-cat-7.png") as image:
        assert image.size == (32, 32)


def test_every_option_is_in_the_recipe(undust: Run, tiny_model: Path):
    done = undust(
        *("generate", "a cat", "--model", tiny_model, "--negative", "a dog", "--steps", 3),
        *("--guidance", 2.5, "--sampler", "heun", "--schedule", "trailing", "--seed", 5),
        *("--size", "40x24", "--out", "cat.png"),
    )
    assert (done.code, done.out) == (0, "cat.png\n")
    recipe = read_recipe(Path("cat.png"))
    asked = {
        "prompt": "a cat",
        "negative": "a dog",
        "steps": 3,
        "guidance": 2.5,
        "sampler": "heun",
        "schedule": "trailing",
        "seed": 5,
        "width": 40,
        "height": 24,
        "model": "tiny",
    }
    assert {name: recipe[name] for name in asked} == asked
    with Image.open("cat.png") as image:
        assert image.size == (40, 24)


def test_json_is_one_line_a_picture_and_nothing_else(undust: Run, tiny_model: Path):
    done = undust(
        *("generate", "a cat", "고양이", "--count", 2, "--model", tiny_model, "--steps", 2),
        *("--seed", 1, "--json", "--out", "new/folder"),
    )
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        ("a cat", 1),
        ("a cat", 2),
        ("고양이", 1),
        ("고양이", 2),
    ]
    for row in rows:
        recipe = read_recipe(Path(row["path"]))
        assert row["steps"] == recipe["steps"] == 2
        assert row["sampler"] == "deis"
        assert row["model_hash"] == recipe["model_hash"]
        assert row["seconds"] > 0
    files = {path.name for path in Path("new/folder").iterdir()}
    assert files == {Path(row["path"]).name for row in rows} | {"contact-sheet.png"}


def test_guides_are_in_the_recipe(undust: Run, tiny_model: Path):
    common = ("generate", "a cat", "--model", tiny_model, "--steps", 2, "--seed", 1)
    Image.new("L", (64, 64), 128).save("mask.png")
    done = undust(
        *(*common, "--guide", "apg:eta=0.5", "--guide", "pag", "--out", "guided.png"),
        *("--guide", "region:prompt=a dog, sitting,mask=mask.png"),
        *("--guide", f"autoguidance:model={tiny_model},scale=0.5"),
    )
    assert (done.code, done.out) == (0, "guided.png\n")
    guides = read_recipe(Path("guided.png"))["guides"]
    assert [guide["name"] for guide in guides] == ["apg", "pag", "region", "autoguidance"]
    assert guides[0] == {"name": "apg", "eta": 0.5, "norm": None, "momentum": -0.5}
    assert guides[2]["prompt"] == "a dog, sitting"
    Path("mask.png").unlink()
    undust("rerun", "guided.png", "--model", tiny_model, "--out", "again.png")
    assert Path("again.png").read_bytes() == Path("guided.png").read_bytes()
    undust(*common, "--out", "plain.png")
    assert "guides" not in read_recipe(Path("plain.png"))
    assert Path("plain.png").read_bytes() != Path("again.png").read_bytes()


def test_guides_that_are_none(undust: Run, tiny_model: Path):
    common = ("generate", "a cat", "--model", tiny_model, "--steps", 1)
    for guide, said in [
        ("apgg", "unknown guide 'apgg'; did you mean 'apg'"),
        ("region:prompt=x,mask=none.png", "none.png cannot be read as a picture"),
        ("autoguidance:model=none", "unknown model 'none'"),
    ]:
        done = undust(*common, "--guide", guide)
        assert done.code == 2
        assert said in done.err


def test_the_guides_are_listed(undust: Run):
    from undust.diffusion.guidance import GUIDANCES

    done = undust("guidances")
    assert done.code == 0
    for name, method in GUIDANCES.items():
        assert f"{name} " in done.out
        assert method.summary in done.out


def test_several_pictures_come_with_a_contact_sheet(undust: Run, tiny_model: Path):
    done = undust("generate", "a", "b", "c", "--model", tiny_model, "--steps", 1, "--seed", 0)
    assert done.out.splitlines() == [
        *(f"undust-out/{name}-0.png" for name in "abc"),
        "undust-out/contact-sheet.png",
    ]
    with (
        Image.open("undust-out/contact-sheet.png") as sheet,
        Image.open("undust-out/c-0.png") as third,
    ):
        box = (2, 2 + 34, 2 + 32, 2 + 34 + 32)  # second row, first column
        assert sheet.crop(box).tobytes() == third.convert("RGB").tobytes()


def test_nothing_is_replaced_in_a_folder(undust: Run, tiny_model: Path):
    arguments = ("generate", "a", "--model", tiny_model, "--steps", 1, "--seed", 0, "--out", "o")
    undust(*arguments)
    first = Path("o/a-0.png").read_bytes()
    done = undust(*arguments, "--negative", "other")
    assert done.out == "o/a-0-2.png\n"
    assert Path("o/a-0.png").read_bytes() == first


def test_a_dash_reads_prompts_from_stdin(undust: Run, tiny_model: Path):
    done = undust(
        *("generate", "first", "-", "--model", tiny_model, "--steps", 1, "--json"),
        stdin="a cat\n\n  a dog  \n",
    )
    prompts = [json.loads(line)["prompt"] for line in done.out.splitlines()]
    assert prompts == ["first", "a cat", "a dog"]


def test_exact_pictures_are_those_made_alone(undust: Run, tiny_model: Path):
    common = ("--model", tiny_model, "--steps", 4, "--seed", 3)
    undust("generate", "a cat", "a dog", *common, "--count", 2, "--exact", "--out", "together")
    undust("generate", "a dog", *common, "--out", "alone")
    assert Path("together/a-dog-3.png").read_bytes() == Path("alone/a-dog-3.png").read_bytes()


def test_rerun_makes_the_same_bytes(undust: Run, tiny_model: Path):
    undust("generate", "a cat", "a dog", "a fish", "--model", tiny_model, "--steps", 3, "--seed", 3)
    done = undust(
        "rerun", "undust-out/a-dog-3.png", "--model", tiny_model, "--out", "again.png", "--json"
    )
    assert done.code == 0
    assert json.loads(done.out)["prompt"] == "a dog"
    assert Path("again.png").read_bytes() == Path("undust-out/a-dog-3.png").read_bytes()


def test_rerun_wants_the_model_that_made_the_picture(undust: Run, tiny_model: Path):
    shutil.copytree(tiny_model, "mine/tiny")
    undust("generate", "a cat", "--model", "mine/tiny", "--steps", 1, "--out", "cat.png")
    # Where it was, beside the picture, and nowhere.
    first = Path("cat.png").read_bytes()
    assert undust("rerun", "cat.png", "--out", "again.png").code == 0
    assert Path("again.png").read_bytes() == first
    shutil.move("mine/tiny", "tiny")
    assert undust("rerun", "cat.png", "--out", "again.png").code == 0
    assert Path("again.png").read_bytes() == first
    shutil.move("tiny", "mine/elsewhere")
    unnamed = undust("rerun", "cat.png")
    assert unnamed.code == 2
    assert "the model 'tiny'" in unnamed.err
    assert "neither mine/tiny nor beside it; say where it is with --model" in unnamed.err
    other = read_recipe(Path("cat.png")) | {"model_hash": "0123456789"}
    write_picture(Path("other.png"), Image.new("RGB", (32, 32)), other)
    another = undust("rerun", "other.png", "--model", tiny_model, "--out", "o.png")
    assert another.code == 2
    assert "0123456789" in another.err
    assert not Path("o.png").exists()


def test_progress_is_plain_lines_where_there_is_no_terminal(undust: Run, tiny_model: Path):
    done = undust("generate", "a cat", "--model", tiny_model, "--steps", 2)
    assert "2/2 steps: a cat\n" in done.err
    assert "\x1b" not in done.err + done.out


def test_ctrl_c_keeps_the_finished_pictures(tiny_model: Path, here: Path):
    """In a process of its own, which listens to it even if these tests run in the background."""
    asked = ["a", "--count", "5000", "--exact", "--steps", "1", "--model", str(tiny_model)]
    command = [sys.executable, "-m", "undust", "generate", *asked]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **streams, text=True, preexec_fn=listening) as running:
        while len(list(here.glob("undust-out/*.png"))) < 3 and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
    assert running.returncode == 130
    finished = sorted((here / "undust-out").iterdir())
    told = re.search(r"undust: stopped; (\d+) of 5000 pictures are in undust-out\n", said)
    assert told
    assert len(finished) - 1 <= int(told[1]) <= len(finished)  # one may be on its way
    for path in finished:
        assert read_recipe(path)["prompt"] == "a"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a smiling cat", "a-smiling-cat"),
        ("웃는 고양이!", "웃는-고양이"),
        (unicodedata.normalize("NFD", "웃는 고양이"), "웃는-고양이"),
        ("बिल्ली", "बिल्ली"),
        ("../../etc/passwd", "etc-passwd"),
        ("astronaut: medium-dark skin tone", "astronaut-medium-dark-skin-tone"),
        ("one two three four five six seven eight nine", "one-two-three-four-five-six-seven-eight"),
        ("x" * 100, "x" * 40),
        ("😀", "picture"),
        ("", "picture"),
    ],
)
def test_names_of_files(prompt: str, name: str):
    assert slug(prompt) == name
