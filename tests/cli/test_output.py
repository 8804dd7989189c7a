"""Where pictures go: kinds by name, files that are replaced, links, folders that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import undust as package
from undust.errors import UndustError
from undust.formats.recipe_png import read_recipe, read_texts, write_picture

Run = Callable[..., Any]
SOURCE = Path(__file__).parents[2] / "src"
KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "JPG": "JPEG", "webp": "WEBP"}
PROMPT = "웃는 고양이 😀, a cat"


@pytest.fixture
def paint(undust: Run, tiny_model: Path) -> Run:
    def run(*options: object) -> Any:
        common = ("--model", tiny_model, "--steps", 2, "--seed", 1)
        return undust("generate", PROMPT, *common, *options)

    return run


@pytest.mark.parametrize(("suffix", "kind"), KINDS.items())
def test_jpeg_and_webp_hold_the_recipe(undust: Run, paint: Run, suffix: str, kind: str):
    file = f"cat.{suffix}"
    assert paint("--out", "cat.png").code == 0
    done = paint("--out", file)
    assert (done.code, done.out) == (0, f"{file}\n")
    with Image.open(file) as image, Image.open("cat.png") as original:
        assert (image.format, image.size) == (kind, original.size)
        apart = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(original, int))
    assert apart.max() <= (0 if kind == "WEBP" else 24)
    assert read_recipe(Path(file)) == read_recipe(Path("cat.png"))
    assert read_texts(Path(file)) | {"undust": ""} == read_texts(Path("cat.png")) | {"undust": ""}
    again = undust("rerun", file, "--out", "again.png")
    assert again.code == 0, again.err
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()
    back = undust("rerun", "cat.png", "--out", f"back.{suffix}")
    assert back.code == 0, back.err
    assert Path(f"back.{suffix}").read_bytes() == Path(file).read_bytes()


def test_exif_is_as_web_uis_write_it(paint: Run):
    """UserComment: eight bytes that name the code, and big-endian UTF-16 (Exif 2.32, 4.6.5)."""
    paint("--out", "cat.jpg")
    with Image.open("cat.jpg") as image:
        tags = image.getexif().get_ifd(0x8769)
    assert tags[0x9286][:8] == b"UNICODE\0"
    assert tags[0x9286][8:].decode("utf-16-be").startswith(f"{PROMPT}\nSteps: 2, Sampler: ")
    assert tags[0x927C].startswith(b'undust:{"')
    assert tags[0x927C].isascii()


def test_a_recipe_that_a_jpeg_has_no_room_for_is_refused_before_painting(paint: Run):
    long = ("--negative", "ㄱ" * 9_999)
    done = paint("--out", "cat.jpeg", *long)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "too long for a JPEG" in done.err
    assert "write cat.png or .webp" in done.err
    assert not Path("cat.jpeg").exists()


def test_python_writes_the_same_kinds(tiny_model: Path, tmp_path: Path):
    (picture,) = package.load(tiny_model).generate("a cat", steps=1, seed=1)
    for name, kind in {"a.jpeg": "JPEG", "b.webp": "WEBP", "c.png": "PNG", "d": "PNG"}.items():
        with Image.open(picture.save(tmp_path / name)) as image:
            assert image.format == kind
    with pytest.raises(UndustError, match=r"written as PNG, JPEG or WebP, for example to e.png"):
        picture.save("e.tiff")
    huge = picture.recipe.model_dump() | {"negative": "x" * 70_000}
    with pytest.raises(UndustError, match="too long for a JPEG"):
        write_picture(tmp_path / "a.jpeg", picture.image, huge)
    assert read_recipe(tmp_path / "a.jpeg")["prompt"] == "a cat"  # as it was
    write_picture(tmp_path / "a.webp", picture.image, huge)
    assert read_recipe(tmp_path / "a.webp")["negative"] == huge["negative"]


def test_a_file_that_is_replaced_is_told(undust: Run, paint: Run):
    assert "already" not in paint("--out", "cat.png").err
    told = "undust: cat.png exists and will be replaced\n"
    assert told in paint("--out", "cat.png").err
    Path("none.safetensors").write_bytes(b"none")
    for wrong in (
        *(("--model", "gone"), ("--sampler", "gone"), ("--size", "7x7"), ("--clip-skip", "99")),
        *(("--control", "none.safetensors=cat.png"), ("--lora", "none.safetensors")),
    ):
        done = paint("--out", "cat.png", *wrong)
        assert (done.code, told in done.err) == (2, False)
    done = undust("rerun", "cat.png", "--out", "cat.png")
    assert (done.code, told in done.err) == (0, True)
    assert "already" not in paint().err + paint().err  # in a folder each gets a name of its own
    assert len(list(Path("undust-out").iterdir())) == 2


@pytest.mark.parametrize(
    "command", [("generate", "a cat"), ("trace", "a cat"), ("invert", "a.png"), ("init", "lora")]
)
def test_nothing_is_written_to_standard_output(undust: Run, command: tuple[str, ...]):
    done = undust(*command, "--out", "-")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("undust: cannot write to -: results are files, and none is written")
    assert not Path("-").exists()


def test_links_are_followed_or_refused_before_painting(paint: Run):
    Path("real").mkdir()
    Path("good.png").symlink_to("real/cat.png")
    assert paint("--out", "good.png").code == 0
    assert Path("good.png").is_symlink()
    assert read_recipe(Path("real/cat.png"))["prompt"] == PROMPT
    for link, target in {"bad.png": "none/cat.png", "a.png": "b.png", "b.png": "a.png"}.items():
        Path(link).symlink_to(target)
    for link, target in {"none-yet": "none", "c": "d", "d": "c"}.items():
        Path(link).symlink_to(target)
    for out in ("bad.png", "a.png", "none-yet", "none-yet/cat.png", "c", "c/cat.png"):
        done = paint("--out", out)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        assert f"undust: cannot write {'' if out in ('bad.png', 'a.png') else 'to '}" in done.err
        assert "which does not exist" in done.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_refused_before_painting(paint: Run):
    os.mkfifo("pipe.png")
    done = paint("--out", "pipe.png")
    assert done.code == 2
    assert done.err == "undust: cannot write pipe.png: it exists and is not a file\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the working folder")
@pytest.mark.parametrize("arguments", [("generate", "a"), ("samplers",), ("inspect", "a.png")])
def test_a_deleted_working_folder_is_told(tmp_path: Path, arguments: tuple[str, ...]):
    """In a process of its own, for torch would end it at once."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    command = [sys.executable, "-m", "undust", *arguments]
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(gone), *command],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "undust: the working folder no longer exists; change to another\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
