"""What cannot be done: one line that says why, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from undust.formats.recipe_png import write_picture

Run = Callable[..., Any]


@pytest.fixture
def refused(undust: Run, here: Path) -> Callable[..., str]:
    """Runs a command line that has to be refused, and gives the line that says why."""

    def run(*arguments: object, stdin: str = "") -> str:
        before = files(here)
        done = undust(*arguments, stdin=stdin)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.startswith("undust: ")
        assert done.err.count("\n") == 1
        assert done.err.endswith("\n")
        assert files(here) == before
        return done.err

    return run


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generat", "a cat"), "generate"),
        (("generate", "a cat", "--stpes", "3"), "no such option: --stpes; did you mean --steps?"),
        (("samplers", "euler"), "undust samplers --help"),
        (("data",), "undust data --help"),
        (("data", "chek", "x"), "check"),
        (("generate", "a cat", "--steps", "many"), "--steps: has to be a whole number, not many"),
        (("generate", "a cat", "--guidance", "x"), "--guidance: has to be a number, not x"),
        (("train", ".", "--minutes", "0.2"), "--minutes: has to be at least 1, not 0.2"),
        (("train", ".", "--minutes", "nan"), "--minutes: has to be at most 10000, not nan"),
        (("train", ".", "--minutes", "inf"), "--minutes: has to be at most 10000, not inf"),
        (("interpolate", "a", "b", "--count", "9999"), "--count: has to be at most 1000, not 9999"),
        (("interpolate", "a", "b", "--count", "2.5"), "--count: has to be a whole number, not 2.5"),
        (("generate", "a cat", "--count", "1000000000"), "--count"),
        (("generate", "a cat", "--size", "64"), "WIDTHxHEIGHT"),
        (("generate",), "no prompt"),
        (("generate", "-"), "no prompt"),
        (("generate", "a cat", "--out", "cat.gif"), "for example to cat.png"),
        (("generate", "a cat", "a dog", "--out", "pets.png"), "give a folder"),
        (("generate", "a cat", "--count", "2", "--out", "cats.png"), "2 pictures"),
        (("generate", "a cat", "--model", "nothing"), "unknown model 'nothing'"),
        (("rerun", "absent.png"), "absent.png"),
        (("inspect", "absent"), "absent does not exist"),
        (("data", "check", "absent"), "absent"),
        (("data", "emoji", "--out", "set"), "python examples/emoji_set.py --out set"),
        (("train", "absent.toml"), "absent.toml"),
    ],
)
def test_before_anything_is_loaded(
    refused: Callable[..., str], arguments: tuple[str, ...], said: str
):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sampler", "eular"), "did you mean 'euler'?"),
        (("--schedule", "kerras"), "did you mean 'karras'?"),
        (("--size", "33x32"), "33x32 is not divisible by 4; 32x32 would be"),
        (("--size", "0x0"), "not divisible"),
        (("--size", "8000x8000"), "too large"),
        (("--steps", 0), "steps: has to be greater than or equal to 1, not 0"),
        (("--steps", -5), "steps"),
        (("--steps", 100_000), "steps"),
        (("--steps", 999, "--schedule", "leading", "--steps", 1001), "steps"),
        (("--count", 0), "count"),
        (("--count", -1), "count"),
        (("--guidance", "nan"), "guidance"),
        (("--guidance", -1), "guidance"),
        (("--seed", -1), "seed"),
        (("--seed", 2**63), "seed"),
    ],
)
def test_values_that_cannot_be(
    refused: Callable[..., str], tiny_model: Path, options: tuple[object, ...], said: str
):
    assert said in refused("generate", "a cat", "--model", tiny_model, *options)


def test_a_folder_that_is_no_model(refused: Callable[..., str], here: Path, tiny_model: Path):
    (here / "empty").mkdir()
    assert "no model_index.json" in refused("generate", "a cat", "--model", "empty")
    assert "model_index.json" in refused("inspect", "empty")
    assert "component" in refused("generate", "a cat", "--model", tiny_model / "unet")


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_weights_that_are_cut_short(
    refused: Callable[..., str], here: Path, tiny_model: Path, left: int
):
    shutil.copytree(tiny_model, here / "cut")
    weights = here / "cut/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    for line in (
        refused("generate", "a cat", "--model", "cut"),
        refused("inspect", "cut"),
        refused("inspect", weights),
    ):
        assert "diffusion_pytorch_model.safetensors" in line


def test_weights_that_are_a_pickle(refused: Callable[..., str], here: Path):
    (here / "model.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(100))
    assert "pickle" in refused("inspect", "model.safetensors")


def test_a_picture_without_a_recipe(refused: Callable[..., str], here: Path):
    Image.new("RGB", (8, 8)).save(here / "plain.png")
    assert "no undust recipe" in refused("rerun", "plain.png")
    (here / "cut.png").write_bytes((here / "plain.png").read_bytes()[:20])
    assert "cut short" in refused("rerun", "cut.png")
    (here / "text.png").write_text("no picture")
    assert "not a PNG" in refused("rerun", "text.png")
    assert "not a picture" in refused("inspect", "text.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 100_000, "height": 100_000}, "too large"),
        ({"steps": 10**9}, "steps"),
        ({"batch": 10**9}, "batch"),
        ({"prompt": "long " * 10_000}, "prompt"),
        ({"sampler": "__import__"}, "unknown sampler"),
        ({"place": 5}, "place"),
        ({"given_noise": True}, "noise"),
        ({"seed": "1; rm -rf"}, "seed"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_recipe_that_asks_for_too_much(
    refused: Callable[..., str], here: Path, tiny_model: Path, change: dict[str, Any], said: str
):
    recipe = {"prompt": "a cat", "seed": 1, "width": 32, "height": 32, "model": "tiny"}
    write_picture(here / "crafted.png", Image.new("RGB", (32, 32)), recipe | change)
    line = refused("rerun", "crafted.png", "--model", tiny_model)
    assert line.startswith("undust: crafted.png: its recipe: ") or "given_noise" in change
    assert said in line


def test_what_a_recipe_says_cannot_steer_the_terminal(undust: Run, here: Path):
    recipe = {"prompt": "\x1b[2Ja\ncat", "seed": 1}
    write_picture(here / "crafted.png", Image.new("RGB", (8, 8)), recipe)
    done = undust("inspect", "crafted.png")
    assert "\x1b" not in done.out
    assert "[2Ja cat" in done.out


def test_an_output_that_cannot_be_written(
    refused: Callable[..., str], here: Path, tiny_model: Path
):
    (here / "taken").write_text("a file")
    command = ("generate", "a cat", "--model", tiny_model, "--out")
    assert "taken is a file" in refused(*command, "taken")
    assert "taken is a file" in refused(*command, "taken/deeper")
    assert "taken is a file" in refused(*command, "taken/cat.png")
    assert "name too long" in refused(*command, "x" * 300)
    assert "cannot write" in refused(*command, "/proc/undust")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission(refused: Callable[..., str], here: Path):
    (here / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused("generate", "a cat", "--out", "locked/in/it")


def test_a_full_disk(refused: Callable[..., str], tiny_model: Path):
    command = ("generate", "a cat", "--model", tiny_model, "--steps", 1, "--size", "64x64")
    with room_for(100):
        assert "cannot write to undust-out" in refused(*command)


def test_a_disk_that_is_full_when_the_picture_is_done(undust: Run, here: Path, tiny_model: Path):
    with room_for(4096):
        done = undust("generate", "a", "--model", tiny_model, "--steps", 1, "--size", "96x96")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("undust: cannot write undust-out/a-")
    assert done.out == ""
    assert files(here) == {}


def test_a_data_set_with_a_broken_picture(
    undust: Run, refused: Callable[..., str], here: Path, pictures: Path, first_stage_recipe: Path
):
    shutil.copytree(pictures, here / "set")
    (here / "set/3.png").write_bytes((here / "set/3.png").read_bytes()[:40])
    done = undust("data", "check", "set")
    assert done.code == 1
    assert "7" in done.out
    assert "1 broken:" in done.out
    assert "set/3.png" in done.out
    train = ("train", first_stage_recipe, "--set", "data.folder=set", "--set", "run.batch=8")
    stopped = undust(*train, "--out", "a")
    assert stopped.code == 2
    assert "set/3.png" in stopped.err.splitlines()[-1]
    assert not list((here / "a").rglob("*.safetensors"))
    skipped = undust(*train, "--out", "b", "--set", "data.on_error=skip")
    assert skipped.code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("run.stpes=3", "stpes"),
        ("run.steps=0", "run.steps"),
        ("run.steps", "key=value"),
        ("kind=other", "kind"),
        ("data.folder=absent", "absent"),
        ("data.size=15", "15"),
        ("kind.x=1", "table"),
    ],
)
def test_a_recipe_for_training_that_cannot_be(
    undust: Run, first_stage_recipe: Path, here: Path, change: str, said: str
):
    done = undust("train", first_stage_recipe, "--set", change)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
    assert files(here) == {}


def test_a_recipe_that_is_not_toml(refused: Callable[..., str], here: Path):
    (here / "broken.toml").write_text("kind = ")
    assert "not TOML" in refused("train", "broken.toml")


def test_debug_shows_where(undust: Run):
    plain = undust("inspect", "absent")
    assert "Traceback" not in plain.err
    for arguments in (("--debug", "inspect", "absent"), ("inspect", "absent", "--debug")):
        done = undust(*arguments)
        assert done.code == 2
        assert "Traceback" in done.err
        assert done.err.splitlines()[-1] == "undust: absent does not exist"


def test_a_prompt_may_look_like_an_option(undust: Run, tiny_model: Path):
    done = undust(
        *("generate", "--json", "--steps", 1, "--model", tiny_model, "--", "--debug", "--steps")
    )
    prompts = [json.loads(line)["prompt"] for line in done.out.splitlines()]
    assert prompts == ["--debug", "--steps"]
