"""undust inspect of pictures by other programs: the facts, the notes, and a command that parses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from undust.cli import app, picture
from undust.formats.a1111 import parse_a1111
from undust.formats.metadata import programs
from undust.formats.recipe_png import read_recipe, write_picture
from undust.recipe.inputs import LoRA, Refiner, Upscale
from undust.recipe.recipe import Recipe
from undust.recipe.request import read_size

from .conftest import Run

TEXT = (
    "a smiling cat, 웃는 고양이\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, "
    "Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, Model hash: abc, Model: m"
)
COMMAND = (
    "undust generate 'a smiling cat, 웃는 고양이' --negative blurry --steps 20 "
    "--sampler euler-ancestral --schedule karras --guidance 7.0 --seed 1 --size 64x64 "
    "--model m.safetensors"
)


COMMANDS = cast("typer.core.TyperGroup", typer.main.get_command(app)).commands


def asked(command: str) -> Recipe:
    """The recipe that a printed command asks for, through the command line's own parser."""
    name, *arguments = shlex.split(command)[1:]
    told: dict[str, Any] = COMMANDS[name].make_context(name, arguments).params
    (prompt,) = told["prompts"]
    assert prompt != "-"  # which would read the standard input
    width, height = read_size(told["size"]) if told["size"] else (64, 64)
    plain = ("negative", "steps", "guidance", "sampler", "schedule", "strength", "clip_skip")
    fields: dict[str, Any] = {
        **{name: told[name] for name in plain},
        "prompt": prompt,
        "seed": told["seed"] or 0,
        "width": width,
        "height": height,
        "init": told["init"] and {"path": told["init"]},
        "upscale": told["upscale"] and Upscale.read(told["upscale"]),
        "refiner": told["refiner"] and Refiner.read(told["refiner"]),
        "loras": [LoRA.read(each) for each in told["loras"] or ()],
        "model": told["model"],
    }
    return Recipe.read({name: value for name, value in fields.items() if value is not None})


def png(path: Path, **texts: str) -> None:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 4)).save(path, pnginfo=info)


def jpeg(path: Path, comment: bytes) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: comment}
    Image.new("RGB", (8, 4)).save(path, exif=exif)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_the_settings_in_exif(undust: Run, here: Path, name: str, encoding: str):
    jpeg(here / name, b"UNICODE\0" + TEXT.encode(encoding))
    facts = json.loads(undust("inspect", name, "--json").out)
    assert facts["A1111"]["prompt"] == "a smiling cat, 웃는 고양이"
    assert (facts["program"], facts["command"]) == ("A1111", COMMAND)
    shown = undust("inspect", name)
    assert shown.err.splitlines()[1] == COMMAND
    assert "웃는 고양이" in shown.out


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("Seed: -1", "seed: -1 means random; left out"),
        ("Seed: -2", "seed: -2 is outside of 0 to"),
        ("Seed: 9223372036854775808", "seed: 9223372036854775808 is outside of 0 to"),
        ("Seed: 18446744073709551615", "seed: 18446744073709551615 is outside of 0 to"),
        ("Steps: 0", "steps: has to be"),
        ("Steps: 1001", "steps: has to be"),
        ("CFG scale: -1", "guidance: has to be"),
        ("CFG scale: 1001", "guidance: has to be"),
        ("Sampler: LMS Karras", "sampler: 'LMS' has no known counterpart here; lms is similar"),
        ("Sampler: DPM++ 2M SDE Heun", "sampler: 'DPM++ 2M SDE Heun' has no known counterpart"),
        ("Schedule type: KL Optimal", "schedule: 'KL Optimal' has no known counterpart"),
        ("Schedule type: Automatic", "schedule: 'Automatic' has no known counterpart"),
        ("Size: 0x0", "size: 0x0 is not valid"),
        ("Size: 67x45", "size: 67x45 is not a multiple of 8"),
        ("Size: 40000x40000", "size: 40000x40000 is too large"),
        ("Clip skip: 99", "clip_skip: has to be"),
        ("Denoising strength: 1.5", "strength: has to be"),
        ("Hires upscale: 9, Hires strength: 0.5", "upscale"),
        ("Refiner: r, Refiner switch at: 2", "refiner"),
        ("Steps: many", "parameters: Steps has to be a number"),
        ("Model: old.ckpt", "old.ckpt is a pickle: convert it to old.safetensors"),
    ],
)
def test_a_value_that_cannot_be_given_is_noted_and_left_out(
    undust: Run, here: Path, line: str, note: str
):
    usual = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "1"}
    usual |= dict(each.split(": ") for each in line.split(", "))
    settings = ", ".join(f"{name}: {value}" for name, value in usual.items())
    png(here / "a.png", parameters=f"a cat\n{settings}")
    facts = json.loads(undust("inspect", "a.png", "--json").out)
    assert len(facts["notes"]) == 1
    assert facts["notes"][0].startswith(note)
    assert asked(facts["command"]).prompt == "a cat"
    assert facts["notes"][0] in " ".join(undust("inspect", "a.png").out.split())


def test_a_size_that_is_too_large_when_upscaled(undust: Run, here: Path):
    png(here / "a.png", parameters=f"{TEXT}, Hires upscale: 8".replace("64x64", "4096x2048"))
    facts = json.loads(undust("inspect", "a.png", "--json").out)
    assert facts["notes"][0].startswith("upscale is left out: size: 4096x2048 is too large")
    assert asked(facts["command"]).width == 4096


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("-", "- "),
        ("--", "--"),
        ("--debug", "--debug"),
        ("-n 'a' \"b\" $HOME `x`", "-n 'a' \"b\" $HOME `x`"),
        ("a\n\tcat\x00\x1b[2J", "a  cat[2J"),
        ("a" * 20_000, "a" * 10_000),
        ("((a:1e9))" + "(" * 9000, None),
    ],
)
def test_any_prompt_is_one_argument(prompt: str, said: str | None):
    command, _ = picture.command({"prompt": prompt, "negative": prompt})
    recipe = asked(command)
    assert said is None or recipe.prompt == said
    assert recipe.negative == (prompt if prompt == "-" else recipe.prompt)


def test_loras_with_an_exponent_and_odd_names():
    loras = [{"path": name, "weight": 1e-7} for name in ("-a", "b:0.5", "c  d@2", "sub/웃=.sft")]
    told = {"prompt": "a", "loras": loras, "refiner": {"model": "-x@0.3", "after": 1e-5}}
    recipe = asked(picture.command(told)[0])
    names = ["-a.safetensors", "b:0.5.safetensors", "c  d@2.safetensors", "sub/웃=.sft"]
    assert [(each.path, each.weight) for each in recipe.loras] == [(name, 1e-7) for name in names]
    assert recipe.refiner
    assert (recipe.refiner.model, recipe.refiner.after) == ("-x@0.3.safetensors", 1e-5)


def test_rerun_names_the_program_of_another_picture(undust: Run, here: Path):
    png(here / "a.png", Software="NovelAI", Comment='{"prompt": "a", "steps": 1}')
    done = undust("rerun", "a.png")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "undust: a.png has no undust recipe; it has settings of NovelAI: see undust inspect\n"
    )


def test_deep_values_and_numbers_that_are_none_are_shown(undust: Run, here: Path):
    deep = (
        '{"prompt": "a", "steps": 1, "x": NaN, "y": ' + "[" * 900 + "]" * 900 + ', "z": [1, "웃"]}'
    )
    png(here / "a.png", Software="NovelAI", Comment=deep)
    facts = json.loads(undust("inspect", "a.png", "--json").out, parse_constant=pytest.fail)
    assert (facts["other settings"]["x"], facts["other settings"]["z"]) == ("NaN", '[1, "웃"]')
    assert undust("inspect", "a.png").code == 0


def test_a_picture_larger_than_those_that_are_taken(undust: Run, here: Path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", TEXT)
    Image.new("1", (5000, 4000)).save(here / "a.png", pnginfo=info)
    facts = json.loads(undust("inspect", "a.png", "--json").out)
    assert (facts["pixels"], facts["A1111"]["steps"]) == ("5000x4000", 20)


@pytest.mark.parametrize("name", ["b.jpg", "b.webp"])
def test_a_picture_is_made_again_from_exif(undust: Run, here: Path, tiny_model: Path, name: str):
    made = ("--model", tiny_model, "--steps", 1, "--seed", 9)
    assert undust("generate", "고양이", *made, "--out", "a.png").code == 0
    recipe = read_recipe(here / "a.png")
    exif = Image.Exif()
    exif[0x8769] = {0x927C: b"undust:" + json.dumps(recipe).encode()}
    with Image.open(here / "a.png") as image:
        image.save(here / name, exif=exif)
    assert undust("rerun", name, "--out", "c.png").code == 0
    assert (here / "c.png").read_bytes() == (here / "a.png").read_bytes()


def test_our_own_recipe_in_a_jpeg_is_shown(undust: Run, here: Path):
    recipe = {"prompt": "고양이", "seed": 3}
    exif = Image.Exif()
    exif[0x8769] = {
        0x9286: b"UNICODE\0" + TEXT.encode("utf-16-be"),
        0x927C: b"undust:" + json.dumps(recipe).encode(),
    }
    Image.new("RGB", (8, 4)).save(here / "a.jpg", exif=exif)
    assert json.loads(undust("inspect", "a.jpg", "--json").out)["recipe"] == recipe
    write_picture(here / "a.png", Image.new("RGB", (8, 4)), recipe)
    assert json.loads(undust("inspect", "a.png", "--json").out)["recipe"] == recipe


NUMBERS = st.integers() | st.floats() | st.sampled_from([-1, 2**63, 2**64 - 1, 1e-9, 0.5])
WORDS = st.text(max_size=12) | st.sampled_from(["-", "--", "a.ckpt", "euler", "karras", "m:1"])

LORAS = st.fixed_dictionaries({"path": WORDS, "weight": NUMBERS})


@given(
    st.fixed_dictionaries(
        {"prompt": WORDS},
        optional={
            **dict.fromkeys(("steps", "seed", "clip_skip", "width", "height"), st.integers()),
            **dict.fromkeys(("guidance", "strength"), st.floats(allow_nan=False)),
            **dict.fromkeys(("negative", "sampler", "schedule", "model"), WORDS),
            "upscale": st.fixed_dictionaries({"factor": NUMBERS}, optional={"strength": NUMBERS}),
            "refiner": st.fixed_dictionaries({"model": WORDS}, optional={"after": NUMBERS}),
            "loras": st.lists(
                st.fixed_dictionaries({"path": WORDS, "weight": NUMBERS}), max_size=3
            ),
        },
    )
)
def test_any_facts_give_a_command_that_parses(told: dict[str, Any]):
    command, notes = picture.command(told)
    assert "\n" not in command
    asked(command)
    assert all(isinstance(note, str) for note in notes)


PIECES = st.sampled_from(
    [*TEXT.replace(", ", "\0, \0").split("\0"), "\n", ": ", '"', "-1", "<lora:"]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_parameters_give_a_command_that_parses(text: str):
    found = programs.read({"parameters": text})
    if found:
        asked(picture.command(found.recipe)[0])
        assert found.recipe["prompt"] == parse_a1111(text)["prompt"]


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.ckpt"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "-a", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 2**64 - 1,
            "steps": 20,
            "cfg": 8.0,
            "denoise": 0.5,
            "scheduler": "beta",
            "sampler_name": "euler",
            "model": ["5", 0],
            "positive": ["2", 0],
            "latent_image": ["3", 0],
        },
    },
    "5": {"class_type": "LoraLoader", "inputs": {"lora_name": "l", "model": ["1", 0]}},
}
NOVEL = {"prompt": "{a}", "uc": "b", "steps": 28, "seed": -1, "sampler": "k_euler", "scale": 5}
FOOOCUS = {"prompt": "a", "base_model": "m", "resolution": "(64, 64)", "lora_combined_1": "l : 1"}
INVOKE = {"positive_prompt": "a", "seed": 1, "steps": 30, "loras": [{"lora": "l", "weight": 1}]}
WRITTEN = [
    {"parameters": TEXT},
    {"prompt": json.dumps(GRAPH)},
    {"Software": "NovelAI", "Comment": json.dumps(NOVEL)},
    {"parameters": json.dumps(FOOOCUS)},
    {"invokeai_metadata": json.dumps(INVOKE)},
    {"Dream": '"a [b]" -s 50 -S 1 -W 512 -H 512 -C 7.5 -A k_lms'},
    {"parameters": json.dumps({"sui_image_params": {"prompt": "a", "loras": ["l"], "steps": 3}})},
]
CUTS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 3),
        st.sampled_from(["", "-", "9" * 12, "1e9", "0", '"', "[", "}", ",", "\\u0000", "4", "nul"]),
    ),
    max_size=4,
)


@given(st.sampled_from(WRITTEN), CUTS)
def test_any_program_changed_anyhow_gives_a_command_that_parses(
    texts: dict[str, str], cuts: list[tuple[float, int, str]]
):
    changed: dict[str, str] = {}
    for key, text in texts.items():
        changed[key] = text
        for share, length, piece in cuts if key != "Software" else []:
            text = changed[key]
            place = int(share * len(text))
            changed[key] = text[:place] + piece + text[place + length :]
    found = programs.read(changed)
    if found and found.recipe:
        asked(picture.command(found.recipe)[0])
