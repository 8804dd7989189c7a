from __future__ import annotations

import hashlib
import math
import re
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.formats.a1111 import a1111_parameters, parse_a1111
from undust.latent.references import resolved_weights
from undust.recipe.inputs import LoRA

SIZE = (512, 768)
RECIPE = {
    "prompt": "a smiling cat, 웃는 고양이",
    "negative": "blurry, text: none",
    "steps": 20,
    "sampler": "euler-ancestral",
    "schedule": "karras",
    "guidance": 7.0,
    "seed": 1,
    "width": 512,
    "height": 768,
    "model_hash": "0123456789",
    "model": 'my "best", so far: v2',
}
# In the form that the web UI's documentation shows it.
TEXT = """a smiling cat, 웃는 고양이
Negative prompt: blurry, text: none
Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, \
Model hash: 0123456789, Model: "my \\"best\\", so far: v2\""""


def settings(recipe: dict[str, Any], size: tuple[int, int] = SIZE) -> str:
    """The last line of the text."""
    return a1111_parameters(recipe, size).split("\n")[-1]


def test_the_text_is_the_one_web_uis_write():
    assert a1111_parameters(RECIPE, SIZE) == TEXT


def test_the_text_is_read_back():
    assert parse_a1111(TEXT) == RECIPE


def test_all_that_there_is_a_word_for():
    """The words are those of the web UI 1.10 (its modules/processing.py) and its extensions."""
    recipe = {
        "prompt": "a cat",
        "steps": 20,
        "sampler": "dpmpp-2m-sde",
        "schedule": "trailing",
        "clip_skip": 1,
        "upscale": {"factor": 1.5, "strength": 0.3},
        "refiner": {"model": "xl/refiner 1.0.safetensors", "model_hash": "01ab", "after": 0.8},
        "loras": [
            {"path": "style/a, b.safetensors", "hash": "01", "weight": 0.8},
            {"path": "other", "hash": "02", "weight": -1.0},
        ],
        "controls": [
            {"path": "n.safetensors", "edges": True, "weight": 0.8, "start": 0.0, "end": 0.5}
        ],
    }
    assert a1111_parameters(recipe, (96, 48)) == (
        "a cat <lora:a b:0.8> <lora:other:-1>\n"
        "Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Simple, Size: 64x32, "
        "Denoising strength: 0.3, Clip skip: 2, "
        'ControlNet 0: "Module: canny, Model: n, Weight: 0.8, Guidance Start: 0, '
        'Guidance End: 0.5", Hires upscale: 1.5, Hires upscaler: Lanczos, '
        "Refiner: refiner 1.0 [01ab], Refiner switch at: 0.8"
    )


def test_the_strengths_of_both_passes():
    over = {"strength": 0.4}
    twice = {**over, "upscale": {"factor": 2.0, "strength": 0.5}}
    assert "Denoising strength: 0.4" in settings(over)
    assert "Denoising strength: 0.4, " in settings(twice)
    assert "Hires strength: 0.5" in settings(twice)
    read = parse_a1111("a cat\nSeed: 1, " + settings(twice))
    assert (read["strength"], read["upscale"]) == (0.4, {"factor": 2.0, "strength": 0.5})


@example(side=500, percent=107)
@given(side=st.integers(1, 4096), percent=st.integers(101, 800))
def test_the_size_is_that_of_the_first_pass(side: int, percent: int):
    upscale = {"factor": percent / 100, "strength": 0.3}
    large = math.ceil(side * percent / 100 - 1e-9)
    assert f"Size: {side}x{side}" in settings({"upscale": upscale}, (large, large)).split(", ")


def test_a_lora_is_told_with_the_hash_that_picture_sites_know_it_by(tmp_path: Path):
    """kohya's: of the tensors, whatever the header says of them."""
    tensor = torch.arange(6.0)
    for name in ("a", "b"):
        save_file({"x": tensor}, tmp_path / f"{name}.safetensors", {"name": name})
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    loras = [resolved_weights(LoRA.read(path)).model_dump() for path in paths]
    loras.insert(1, {"path": "c", "weight": 1.0})  # a folder has none
    digits = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:12]
    assert f'Lora hashes: "a: {digits}, b: {digits}"' in settings({"loras": loras})


def test_the_text_of_another_program_is_read():
    found = parse_a1111(
        "masterpiece, a (cat:1.2) <lora:grain:0.6>\nin the rain<lora:b>\n"
        "Negative prompt: lowres,\nbad hands\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Exponential, CFG scale: 6.5, Seed: 42, "
        "Size: 832x1216, Denoising strength: 0.45, Clip skip: 2, Hires upscale: 2, "
        'Hires upscaler: 4x-UltraSharp, Lora hashes: "a: 12, b: 34", Refiner: x_1.0 [7440042bbd], '
        "Refiner switch at: 0.7, Version: v1.10.1"
    )
    assert found == {
        "prompt": "masterpiece, a (cat:1.2)\nin the rain",
        "negative": "lowres,\nbad hands",
        "steps": 30,
        "sampler": "dpmpp-2m",
        "schedule": "exponential",
        "guidance": 6.5,
        "seed": 42,
        "width": 832,
        "height": 1216,
        "clip_skip": 1,
        "upscale": {"factor": 2.0, "strength": 0.45},
        "refiner": {"model": "x_1.0", "model_hash": "7440042bbd", "after": 0.7},
        "loras": [{"path": "grain", "weight": 0.6}, {"path": "b", "weight": 1.0}],
        "other": {
            "Hires upscaler": "4x-UltraSharp",
            "Lora hashes": "a: 12, b: 34",
            "Version": "v1.10.1",
        },
    }


@pytest.mark.parametrize(
    ("told", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp-2m", "karras"),
        ("Sampler: DPM++ 2M SDE Exponential", "dpmpp-2m-sde", "exponential"),
        ("Sampler: DPM++ 2M Karras, Schedule type: Automatic", "dpmpp-2m", "karras"),
        ("Sampler: DPM2 a Karras, Schedule type: Uniform", "dpm2-ancestral", "linspace"),
        ("Sampler: DPM++ 2M SGM Uniform", "dpmpp-2m", "sgm-uniform"),  # Forge
        ("Sampler: DPM++ 3M SDE Exponential", "DPM++ 3M SDE", "exponential"),
        ("Sampler: Euler A, Schedule type: karras", "euler-ancestral", "karras"),
        ("Sampler: dpm++ 2m sde karras", "dpmpp-2m-sde", "karras"),
        ("Sampler: Euler a, Schedule type: sgm_uniform", "euler-ancestral", "sgm-uniform"),
        ("Sampler: DDIM CFG++, Schedule type: Automatic", "DDIM CFG++", "Automatic"),
        ("Sampler: DPM++ 2M SDE Heun", "DPM++ 2M SDE Heun", None),
        ("Sampler: DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun Karras", None),
        ("Sampler: Euler a, Schedule type: KL Optimal", "euler-ancestral", "KL Optimal"),
        ("Sampler: Euler, Schedule type: kl-optimal", "euler", "kl-optimal"),
        ("Sampler: DPM fast, Eta: 0.0", "DPM fast", None),
        ("Sampler: dpm-fast", "dpm-fast", None),
        ("Sampler: LMS", "LMS", None),
        ("Sampler: DPM++ 3M SDE", "DPM++ 3M SDE", None),
        ("Sampler: UniPC", "UniPC", None),
        ("Sampler: UniPC, UniPC order: 2, UniPC variant: bh2", "unipc", None),
    ],
)
def test_samplers_are_ours_where_they_are_the_same(told: str, sampler: str, schedule: str | None):
    found = parse_a1111(f"a cat\nSteps: 20, {told}, Seed: 1, CFG scale: 7")
    assert (found["sampler"], found.get("schedule")) == (sampler, schedule)


def test_no_two_have_one_name():
    for sampler, schedule in product(SAMPLERS, SCHEDULES):
        recipe = {"sampler": sampler, "schedule": schedule, "steps": 1, "seed": 2}
        read = parse_a1111(a1111_parameters(recipe, SIZE))
        assert (read["sampler"], read["schedule"], "other" in read) == (sampler, schedule, False)


def test_the_strength_of_a_pass_to_a_size_is_not_of_a_picture_begun_from():
    found = parse_a1111("a\nSteps: 1, Seed: 1, Denoising strength: 0.7, Hires resize: 64x64")
    assert "strength" not in found
    assert found["other"] == {"Denoising strength": "0.7", "Hires resize": "64x64"}


def test_no_layer_is_skipped_where_theirs_counts_one():
    assert "clip_skip" not in parse_a1111("a cat\nSteps: 1, Seed: 2, Clip skip: 1")


@pytest.mark.parametrize(
    "prompt", ["a cat", "a cat\nwith a hat: red, size: small", "", "ratio: 16:9, style: comic"]
)
def test_a_last_line_with_fewer_than_three_settings_is_prompt(prompt: str):
    assert parse_a1111(prompt) == {"prompt": prompt, "negative": ""}


def test_a_setting_cannot_pose_as_a_field():
    found = parse_a1111("a cat\nSteps: 1, Seed: 2, prompt: other, width: wide")
    assert found["prompt"] == "a cat"
    assert found["other"] == {"prompt": "other", "width": "wide"}


@pytest.mark.parametrize(
    "told",
    [
        *("CFG scale: nan", "CFG scale: 1e999", "Seed: " + "9" * 10_000, "Clip skip: two"),
        *("Hires upscale: x", "Denoising strength: ", "Refiner: a [b], Refiner switch at: never"),
    ],
)
def test_a_number_that_is_none_is_noted_and_the_rest_is_read(told: str):
    found = parse_a1111(f"a cat\nSteps: 1, Size: 1x1, {told}, Version: 1")
    assert (found["prompt"], found["steps"]) == ("a cat", 1)
    assert len(found["notes"]) == 1
    assert re.fullmatch(r"parameters: .* has to be a number, not '.*'", found["notes"][0])


@pytest.mark.parametrize("text", ["a\n" + "a b: 1," * 5000, "<lora:a:1>" * 5000])
def test_more_than_can_be_meant_is_refused(text: str):
    with pytest.raises(UndustError, match=r"parameters.* has 5,000 entries"):
        parse_a1111(text)


WORDS = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30)
LINES = (
    st.lists(WORDS, max_size=3)
    .map("\n".join)
    # The form has no way to write these; the recipe's own JSON has.
    .filter(lambda text: text == text.strip() and "\nNegative prompt:" not in "\n" + text)
)


SHARES = st.floats(0.01, 1)
NAMES = st.text("ab 1_-[]웃.", min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and name.strip(".")
)


@given(
    prompt=LINES,
    negative=LINES,
    told=st.fixed_dictionaries(
        {
            "steps": st.integers(1, 1000),
            "seed": st.integers(0, 2**63 - 1),
            "guidance": st.floats(0, 1000),
        },
        optional={
            "sampler": st.sampled_from(sorted(SAMPLERS)),
            "schedule": st.sampled_from(sorted(SCHEDULES)),
            "model": WORDS.filter(bool),
            "model_hash": WORDS.filter(bool),
            "strength": SHARES,
            "clip_skip": st.integers(1, 64),
            "upscale": st.fixed_dictionaries({"factor": st.floats(1.01, 8), "strength": SHARES}),
            "refiner": st.fixed_dictionaries(
                {"model": NAMES, "model_hash": st.text("0af", min_size=1), "after": SHARES}
            ),
            "loras": st.lists(
                st.fixed_dictionaries({"path": NAMES, "weight": st.floats(-100, 100)}), min_size=1
            ),
        },
    ),
)
def test_any_recipe_comes_back(prompt: str, negative: str, told: dict[str, Any]):
    recipe = {"prompt": prompt, "negative": negative, **told}
    read = parse_a1111(a1111_parameters(recipe, (8, 8)))
    del read["width"], read["height"]
    assert read == recipe


PIECES = (
    *(
        "Steps: 1, ",
        "Seed: 9",
        "Size: 1x",
        "Sampler: Euler a",
        " Karras",
        "Clip skip: -",
        "Refiner",
    ),
    *(
        ": ",
        ", ",
        '"',
        "\\",
        "\n",
        " [",
        "]",
        "<lora:",
        ">",
        "\u00bd",
        "9" * 5000,
        "e9",
        "\ud800",
        "웃",
    ),
    *(
        "Hires upscale: ",
        "Hires strength: nan",
        "Denoising strength: ",
        "Negative prompt:",
        "Eta: 0",
    ),
)


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text_gives_a_recipe_or_an_error(text: str):
    try:
        assert "prompt" in parse_a1111(text)
    except UndustError as error:
        assert str(error).startswith("parameters")


@pytest.mark.parametrize(
    "piece", ["a", " ", "a:", '"', 'a:"', "\\", 'a: "\\', "a b-/", ",", "<lora:", "<lora:a", "a:,"]
)
def test_no_text_takes_long(piece: str):
    began = time.perf_counter()
    with suppress(UndustError):
        parse_a1111("\n" + piece * (2**18 // len(piece)))
    assert time.perf_counter() - began < 5


SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("after", "other"),
    [
        ("", {}),
        ("\nTemplate: a {red|blue} cat, fine: yes", {"Template": "a {red|blue} cat, fine: yes"}),
        (
            "\nTemplate: a __x__,\nand more\nNegative Template: {a|b}",
            {"Template": "a __x__,\nand more", "Negative Template": "{a|b}"},
        ),
        ("\nNote: by me", {"Note": "by me"}),
        ("\n\nfree words, and more", {"after the settings": "free words, and more"}),
        ("\n12:30 by me", {"after the settings": "12:30 by me"}),
    ],
)
def test_lines_after_the_settings_are_in_no_prompt(after: str, other: dict[str, str], end: str):
    text = f"a cat,\nsmiling\nNegative prompt: blurry,\nbad\n{SETTINGS}{after}"
    found = parse_a1111(text.replace("\n", end))
    assert (found["prompt"], found["negative"]) == ("a cat,\nsmiling", "blurry,\nbad")
    assert (found["steps"], found["seed"]) == (20, 1)
    assert found.get("other", {}) == other
    assert ("notes" in found) == ("after the settings" in other)


@pytest.mark.parametrize(
    ("told", "field", "number"),
    [
        ("CFG scale: 7,5", "guidance", 7.5),
        ("CFG scale: 1,125", "guidance", 1.125),
        ("Seed: 1,234,567", "seed", 1234567),
        ("Seed: 12,345", "seed", 12345),
        ("Steps: 20,0", "steps", 20),
        ("Denoising strength: 0,6", "strength", 0.6),
    ],
)
def test_decimal_commas_and_commas_between_thousands(told: str, field: str, number: float):
    name = told.partition(":")[0]
    rest = ", ".join(each for each in SETTINGS.split(", ") if not each.startswith(name))
    for line in (
        f"{rest}, {told}",
        f"{rest}, {told}, Model: m",
        f"{rest}, {told},",
        f"{told},{rest}",
    ):
        found = parse_a1111(f"a cat\n{line}")
        assert (found[field], found["sampler"]) == (number, "euler-ancestral")
        assert "notes" not in found


@pytest.mark.parametrize("told", ["CFG scale: 1,2,3", "Seed: 12,34", "Steps: 20,5"])
def test_commas_that_leave_a_number_open_are_noted(told: str):
    name, value = told.split(": ")
    found = parse_a1111(f"a cat\nSampler: Euler a, Model hash: 0, {told}, Size: 64x64")
    assert found["notes"] == [f"parameters: {name} has to be a number, not '{value}'"]


def test_a_negative_prompt_after_the_settings():
    found = parse_a1111(f"a cat\n{SETTINGS}\nNegative prompt: blurry,\nbad\nTemplate: a __x__")
    assert (found["prompt"], found["negative"]) == ("a cat", "blurry,\nbad")
    assert found["other"] == {"Template": "a __x__"}
    both = parse_a1111(f"a cat\nNegative prompt: dark\n{SETTINGS}\nNegative prompt: blurry")
    assert (both["negative"], both["other"]) == ("dark", {"Negative prompt": "blurry"})


@pytest.mark.parametrize(
    "lines",
    [
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1\nSize: 64x32, Model hash: 0, Model: m",
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1,\n Size: 64x32, Model: m",
        "Steps: 20\nSampler: Euler a\nCFG scale: 7\nSeed: 1\nSize: 64x32\nModel: m",
        "Steps: 20, Sampler: Euler a\r\nCFG scale: 7, Clip skip: 2\r\nSeed: 1\r\nSize: 64x32",
        "steps: 20, sampler: Euler a, cfg scale: 7, seed: 1, size: 64x32",
        "Steps: 20, Sampler: Euler a, CFG Scale: 7, Seed: 1, Size: 64 x 32",
        "Steps:20,Sampler:Euler a,CFG scale:7,Seed:1,Size:64×32",
    ],
)
@pytest.mark.parametrize("after", ["", "\nTemplate: a {red|blue} cat"])
def test_other_ways_to_write_the_settings(lines: str, after: str):
    found = parse_a1111(f"a cat\nNegative prompt: blurry\n{lines}{after}")
    assert (found["prompt"], found["negative"]) == ("a cat", "blurry")
    assert (found["steps"], found["guidance"], found["seed"]) == (20, 7.0, 1)
    assert (found["sampler"], found["width"], found["height"]) == ("euler-ancestral", 64, 32)
    assert found.get("other", {}).keys() == ({"Template"} if after else set())


@pytest.mark.parametrize(
    "text",
    [
        "a cat\n  Negative prompt: blurry\n",
        "a cat\nnegative prompt: blurry\n",
        "a cat\rNegative prompt: blurry\r",
        "a cat Negative prompt: blurry ",  # sites and editors that take away the ends of lines
        "a cat\\nNegative prompt: blurry\\n",
        "a cat\\r\\nNegative prompt: blurry\\r\\n",
    ],
)
def test_other_ways_to_write_the_negative_prompt(text: str):
    found = parse_a1111(text + SETTINGS)
    assert (found["prompt"], found["negative"], found["steps"]) == ("a cat", "blurry", 20)


def test_negative_prompts_are_one_as_in_the_web_ui():
    text = f"it says Negative prompt: no\nNegative prompt: a\nb\nNegative prompt: c\n{SETTINGS}"
    found = parse_a1111(text)
    assert (found["prompt"], found["negative"]) == ("it says Negative prompt: no", "a\nb\nc")


def test_a_name_in_other_letters_does_not_replace_the_web_uis():
    assert parse_a1111(f"a cat\n{SETTINGS}, seed: 2")["other"] == {"seed": "2"}


def test_one_line_of_settings_is_no_prompt():
    for text in (SETTINGS, SETTINGS.replace("Steps: 20, ", "") + ", Steps: 20, Version: 1"):
        assert parse_a1111(text)["prompt"] == ""
    assert parse_a1111("it says Negative prompt: no")["prompt"] == "it says Negative prompt: no"
    assert parse_a1111("a \\n cat")["prompt"] == "a \\n cat"


def test_a_size_that_is_none_is_noted():
    found = parse_a1111(f"a cat\n{SETTINGS}, Size: large")
    assert found["notes"] == ["parameters: Size has to be WIDTHxHEIGHT, not 'large'"]


def test_the_last_line_of_usual_settings_counts():
    text = f"Steps: 9, Sampler: x, Seed: 5 and a cat\n{SETTINGS}\na: 1, b: 2, c: 3, d: 4"
    found = parse_a1111(text)
    assert found["steps"] == 20
    assert found["prompt"] == "Steps: 9, Sampler: x, Seed: 5 and a cat"


RESOURCES = (
    '[{"type":"checkpoint","modelVersionId":889818,"modelName":"Illustrious-XL",'
    '"modelVersionName":"v1.0"},{"type":"lora","weight":0.7,"modelVersionId":1,'
    '"modelName":"Detail: Tweaker, \\"fine\\"","modelVersionName":"v2"},'
    '{"type":"embed","modelVersionId":7}]'
)


def test_json_in_the_settings_is_not_cut_at_its_commas():
    found = parse_a1111(
        f"a cat\n{SETTINGS}, Civitai resources: {RESOURCES}, Clip skip: 2, "
        'Hashes: {"model": "abc", "lora:x": "def"}, Civitai metadata: {}, Version: v1'
    )
    assert found["other"] == {
        "Civitai resources": RESOURCES,
        "Hashes": '{"model": "abc", "lora:x": "def"}',
        "Civitai metadata": "{}",
        "Version": "v1",
    }
    assert found["clip_skip"] == 1
    assert found["notes"] == [
        "parameters: checkpoint Illustrious-XL v1.0: Civitai does not store its file name",
        'parameters: lora Detail: Tweaker, "fine" v2, weight 0.7: Civitai does not store '
        "its file name",
        "parameters: embed of version 7: Civitai does not store its file name",
    ]


@pytest.mark.parametrize("broken", ["[1, 2", "{", "[}", "[x], y", "[1] 2", "[" * 5000])
def test_what_only_begins_as_json_ends_at_a_comma(broken: str):
    found = parse_a1111(f"a cat\n{SETTINGS}, Odd: {broken}, Clip skip: 2")
    assert found["clip_skip"] == 1
    assert found["other"] == {"Odd": broken.partition(",")[0]}


@pytest.mark.parametrize(
    ("tag", "weight", "note"),
    [
        ("<lora:x>", 1.0, ""),
        ("<lora:x:0.5>", 0.5, ""),
        ("<lyco:x:0.5>", 0.5, ""),
        ("<lora:x:-1>", -1.0, ""),
        ("<lora:x:0.5:0.5>", 0.5, ""),
        ("<lora:x:te=0.5:unet=0.5>", 0.5, ""),
        ("<lora:x:0.3:0.8>", 0.8, "there is one weight here, 0.8"),
        ("<lora:x:te=0.3:unet=0.8>", 0.8, "there is one weight here, 0.8"),
        ("<lora:x:unet=0.8>", 0.8, "1.0 for the text encoder and 0.8 for the U-Net"),
        ("<lora:x:0.5:0.5:lbw=1,0,0,1>", 0.5, "lbw=1,0,0,1 not supported; left out"),
        ("<lora:x:0.5:lbw=MIDD:stop=10>", 0.5, "lbw=MIDD:stop=10 not supported; left out"),
        ("<lora:x:1:1:64>", 1.0, "64 not supported; left out"),
        ("<lora:x:strong>", 1.0, "the weight of x has to be a number, not 'strong'; 1 is used"),
        ("<hypernet:x:0.5>", None, "hypernetwork x: not supported; left out"),
    ],
)
def test_networks_in_the_prompt(tag: str, weight: float | None, note: str):
    found = parse_a1111(f"a {tag} cat\nNegative prompt: blurry\n{SETTINGS}")
    assert found["prompt"] == "a cat"
    assert found.get("loras") == (None if weight is None else [{"path": "x", "weight": weight}])
    notes = found.get("notes", [])
    assert len(notes) == bool(note)
    assert all(note in each for each in notes)


@pytest.mark.parametrize(
    ("told", "sampler", "schedule"),
    [
        ("Sampler: euler_ancestral, Scheduler: karras", "euler-ancestral", "karras"),
        ("Sampler: dpmpp_2m_sde_gpu, Schedule type: Simple", "dpmpp-2m-sde", "trailing"),
        ("Sampler: dpmpp_2m_karras", "dpmpp-2m", "karras"),
        ("Sampler: uni_pc, Scheduler: beta", "uni_pc", None),
        ("Sampler: dpm++2m karras, RNG: cuda", "dpmpp-2m", "karras"),  # stable-diffusion.cpp
        ("Sampler: dpm++2s_a", "dpmpp-2s-ancestral", None),
        ("Sampler: dpm++2mv2", "dpm++2mv2", None),
    ],
)
def test_comfyuis_names_in_the_text(told: str, sampler: str, schedule: str):
    found = parse_a1111(f"a cat\nSteps: 20, {told}, Seed: 1, CFG scale: 7")
    assert (found["sampler"], found.get("schedule")) == (sampler, schedule)
