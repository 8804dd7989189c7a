"""A pipe in the place of any file that a command reads: one line, at once, whoever names it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from undust.formats.recipe_png import read_recipe, write_picture
from undust.pipeline import load

Run = Callable[..., Any]
PAINT = ("generate", "a cat", "--steps", 1, "--model", "model")
COMMANDS = [
    ("generate", "a cat", "--model", "pipe"),
    (*PAINT, "--init", "pipe"),
    (*PAINT, "--init", "picture.png", "--mask", "pipe"),
    (*PAINT, "--noise", "pipe"),
    (*PAINT, "--lora", "pipe"),
    (*PAINT, "--lora", "pipe:0.5"),
    (*PAINT, "--embedding", "pipe=word"),
    (*PAINT, "--control", "pipe=picture.png"),
    (*PAINT, "--control", "weights.safetensors=pipe"),
    (*PAINT, "--control", "weights.safetensors=canny:pipe@0.5"),
    (*PAINT, "--refiner", "pipe"),
    (*PAINT, "--vae", "pipe"),
    (*PAINT, "--guide", "region:prompt=a dog,mask=pipe"),
    (*PAINT, "--guide", "autoguidance:model=pipe"),
    ("invert", "pipe", "--model", "model"),
    ("invert", "picture.png", "--model", "pipe"),
    ("likelihood", "pipe", "--model", "model"),
    ("rerun", "pipe"),
    ("rerun", "begun.png", "--model", "model"),
    ("inspect", "pipe"),
    ("inspect", "pipe.png"),
    ("inspect", "pipe.safetensors"),
    ("inspect", "pipe.ckpt"),
    ("convert", "pipe", "there", "--to", "folder"),
    ("convert", "pipe.ckpt", "there", "--to", "folder"),
    ("convert", "pipe.safetensors", "there.safetensors", "--to", "single-file"),
    ("convert", "model", "there", "--to", "folder", "--lora", "pipe"),
    ("train", "pipe"),
]


@pytest.fixture
def refused(undust: Run, here: Path, tiny_model: Path) -> Iterator[Callable[..., str]]:
    """Runs a command line that has to be refused within a minute, and gives its one line."""
    shutil.copytree(tiny_model, "model")
    for name in ("pipe", "pipe.png", "pipe.safetensors", "pipe.ckpt"):
        os.mkfifo(name)
    Path("data").mkdir()
    os.mkfifo("data/metadata.jsonl")
    Image.new("RGB", (32, 32)).save("picture.png")
    shutil.copy("model/vae/diffusion_pytorch_model.safetensors", "weights.safetensors")

    def late(*_: object) -> None:
        raise TimeoutError("the command waits for a pipe")

    def run(*arguments: object) -> str:
        done = undust(*arguments)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.count("\n") <= 2, done.err  # such as "reading … in a separate process"
        assert not any(here.glob("undust-out/*")), "nothing was painted"
        return done.err

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield run
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda each: " ".join(map(str, each)))
def test_a_pipe_is_named_by(arguments: tuple[object, ...], refused: Callable[..., str]):
    if "begun.png" in arguments:  # somebody's picture, whose recipe names a pipe
        model = load("model")
        model.generate("a cat", steps=1, init="picture.png")[0].save("begun.png")
        recipe = read_recipe(Path("begun.png"))
        recipe["init"]["path"] = "pipe"
        write_picture(Path("begun.png"), Image.new("RGB", (32, 32)), recipe)
    assert "is a pipe, not a file" in refused(*arguments)


@pytest.mark.parametrize("arguments", [("evaluate", "model", "data"), ("data", "check", "data")])
def test_a_pipe_in_a_data_set_is_passed_over_and_named(
    arguments: tuple[str, ...], refused: Callable[..., str]
):
    said = refused(*arguments)
    assert "holds neither metadata.jsonl nor pictures" in said
    assert "that can be read" in said
    assert said.endswith(": metadata.jsonl\n")


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
        *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
        "text_encoder/model.safetensors",
        *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json")),
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/added_tokens.json",
    ],
)
def test_a_pipe_in_a_models_folder_is_named(file: str, refused: Callable[..., str]):
    Path("model", file).unlink(missing_ok=True)
    os.mkfifo(Path("model", file))
    said = [
        refused(*PAINT),
        refused("convert", "model", "there", "--to", "folder"),
    ]
    for line in said:
        assert f"{file} is a pipe, not a file" in line


def test_a_command_that_is_given_a_pipe_ends(tmp_path: Path):
    """As a process of its own, through a pipe of the shell and a named one."""
    os.mkfifo(tmp_path / "pipe")
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "undust", "inspect", f"/dev/fd/{reading}"],
            pass_fds=[reading],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is a pipe, not a file; save its output to a file first\n" in done.stderr
