"""What each program writes, made by hand after its own code and published pictures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats.metadata import programs
from undust.formats.metadata.found import Found, as_number

COMMON = {"prompt": "a cat", "negative": "blurry", "steps": 30, "seed": 1, "guidance": 7.0}
SIZE = {"width": 512, "height": 768}


def read(**texts: object) -> Found:
    plain = {
        key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items()
    }
    found = programs.read(plain)
    assert found
    return found


INVOKE = {
    "app_version": "4.2.9",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a cat",
    "negative_prompt": "blurry",
    "seed": 1,
    "steps": 30,
    "cfg_scale": 7,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 0,
    **SIZE,
}


@pytest.mark.parametrize(
    "named",
    [
        {
            "model": {"model_name": "m", "base_model": "sd-1", "model_type": "main"},
            "loras": [{"lora": {"model_name": "l", "base_model": "sd-1"}, "weight": 0.75}],
        },
        {
            "model": {"key": "1", "hash": "blake3:01", "name": "m", "base": "sdxl", "type": "main"},
            "loras": [{"model": {"key": "2", "name": "l", "type": "lora"}, "weight": 0.75}],
        },
    ],
    ids=["version 3", "version 4"],
)
def test_invokeai(named: dict[str, Any]):
    found = read(invokeai_metadata={**INVOKE, **named})
    assert found.program == "InvokeAI"
    assert found.recipe == {
        **COMMON,
        **SIZE,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
        "model": "m",
        "loras": [{"path": "l", "weight": 0.75}],
    }
    assert found.notes == []


def test_invokeais_strength_and_emphasis():
    told = {**INVOKE, "generation_mode": "img2img", "strength": 0.4, "scheduler": "unipc"}
    found = read(invokeai_metadata={**told, "positive_prompt": "a cat++"})
    assert found.recipe["strength"] == 0.4
    assert [note.split(" ")[0] for note in found.notes] == ["sampler:", "its"]
    assert "strength" not in read(invokeai_metadata={**INVOKE, "strength": 0.4}).recipe


@pytest.mark.parametrize(
    "prompt", ["a cat [blurry]", [{"prompt": "a cat [blurry]", "weight": 1.0}]]
)
def test_invokeai_2(prompt: object):
    image = {
        "prompt": prompt,
        "steps": 30,
        "cfg_scale": 7,
        "seed": 1,
        "sampler": "k_euler_a",
        "type": "txt2img",
        **SIZE,
    }
    found = read(**{"sd-metadata": {"model_weights": "m", "image": image}})
    assert found.recipe == {**COMMON, **SIZE, "sampler": "euler-ancestral", "model": "m"}


@pytest.mark.parametrize("key", ["Dream", "dream"])
@pytest.mark.parametrize("rest", ["-s 30 -S 1 -W 512 -H 768 -C 7.0 -A k_heun", "-s30 -S1 -W512 -H768 -C7.0 -A k_heun"])  # fmt: skip  # noqa: E501
def test_invokeais_dream(key: str, rest: str):
    found = read(**{key: f'"a cat [blurry]" {rest}'})
    assert found.recipe == {**COMMON, **SIZE, "sampler": "heun"}


NOVEL = {
    "prompt": "a cat",
    "uc": "blurry",
    "steps": 30,
    "seed": 1,
    "scale": 7,
    "sampler": "k_dpmpp_2m",
    "noise_schedule": "karras",
    "strength": 0.7,
    "noise": 0.2,
    **SIZE,
}


def novel(**changed: object) -> Found:
    return read(
        Title="AI generated image",
        Description="a dog",
        Software="NovelAI",
        Source="Stable Diffusion XL C1E1DE52",
        Comment={**NOVEL, **changed},
    )


def test_novelai():
    found = novel()
    assert found.program == "NovelAI"
    assert found.recipe == {**COMMON, **SIZE, "sampler": "dpmpp-2m", "schedule": "karras"}
    assert found.notes == [
        "its model, Stable Diffusion XL C1E1DE52, is NovelAI's alone; set another one with --model"
    ]
    assert novel(prompt=None).recipe["prompt"] == "a dog"
    assert novel(request_type="Img2ImgRequest").recipe["strength"] == 0.7


@pytest.mark.parametrize("prompt", ["a {cat}", "a [cat]", "1.3::cat::"])
def test_novelais_emphasis_is_another(prompt: str):
    assert "emphasis differs" in novel(prompt=prompt).notes[1]


def test_novelai_4():
    caption = {"base_caption": "a cat", "char_captions": [{"char_caption": "a girl"}]}
    found = novel(v4_prompt={"caption": caption, "use_coords": False}, prompt="a cat")
    assert found.recipe["prompt"] == "a cat, a girl"


FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "m",
    "full_prompt": ["cinematic a cat"],
    "guidance_scale": 7,
    "lora_combined_1": "offset : 0.1",
    "lora_combined_2": "None : 1.0",
    "loras": [["offset", 0.1, "0123"]],
    "negative_prompt": "blurry",
    "prompt": "a cat",
    "resolution": "(512, 768)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "1",
    "steps": 30,
    "styles": "['Fooocus V2']",
}


@pytest.mark.parametrize("scheme", ["fooocus", ""])
def test_fooocus(scheme: str):
    found = read(parameters=FOOOCUS, fooocus_scheme=scheme)
    assert found.program == "Fooocus"
    assert found.recipe == {
        **COMMON,
        **SIZE,
        "sampler": "dpmpp-2m-sde",
        "schedule": "karras",
        "model": "m",
        "loras": [{"path": "offset", "weight": 0.1}],
    }
    assert len(found.notes) == 2


def test_fooocus_in_the_web_uis_form():
    found = read(
        fooocus_scheme="a1111",
        parameters="a cat\nNegative prompt: blurry\nSteps: 30, Sampler: DPM++ 2M SDE Karras, "
        "Seed: 1, Size: 512x768, CFG scale: 7, Scheduler: karras, Model: m, "
        'Lora hashes: "offset: 0123, b: 45", Lora weights: "offset: 0.1, b: 0.5"',
    )
    assert found.program == "A1111 (Fooocus)"
    assert found.recipe == {
        **COMMON,
        **SIZE,
        "sampler": "dpmpp-2m-sde",
        "schedule": "karras",
        "model": "m",
        "loras": [{"path": "offset", "weight": 0.1}, {"path": "b", "weight": 0.5}],
    }


EASY = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "seed": 1,
    "num_inference_steps": 30,
    "guidance_scale": 7.0,
    "sampler_name": "euler_a",
    "use_stable_diffusion_model": "C:\\models\\m.safetensors",
    "use_lora_model": ["l"],
    "lora_alpha": [0.5],
    "clip_skip": True,
    **SIZE,
}
EASY_FACTS = {**COMMON, **SIZE, "sampler": "euler-ancestral", "model": "m", "clip_skip": 1}


def test_easy_diffusion():
    found = read(parameters=EASY)
    assert found.recipe == {**EASY_FACTS, "loras": [{"path": "l", "weight": 0.5}]}
    texts = {name: str(value) for name, value in EASY.items() if "lora" not in name}
    assert read(**texts).recipe == EASY_FACTS
    loras = [{"path": "a", "weight": 0.5}, {"path": "b", "weight": 1.0}]
    several = {"use_lora_model": "['a', 'b']", "lora_alpha": "[0.5, 1]", "prompt_strength": "0.8"}
    assert read(**texts, **several).recipe == {**EASY_FACTS, "loras": loras, "strength": 0.8}
    titled = {"LoRA model": "a", "LoRA Strength": "0.5", "Stable Diffusion model": "m"}
    assert read(**titled).recipe == {"model": "m", "loras": loras[:1]}


def test_draw_things():
    told = {
        "c": "a cat",
        "uc": "blurry",
        "seed": 1,
        "steps": 30,
        "scale": 7,
        "sampler": "DPM++ 2M Karras",
        "size": "512x768",
        "model": "m.ckpt",
        "strength": 1,
        "lora": [{"model": "l.ckpt", "weight": 0.6}],
        "v2": {"seed": 1},
    }
    assert read(parameters=told).recipe == {
        **COMMON,
        **SIZE,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
        "model": "m.ckpt",
        "loras": [{"path": "l.ckpt", "weight": 0.6}],
    }
    assert read(parameters={**told, "strength": 0.5}).recipe["strength"] == 0.5


def test_swarmui():
    told = {
        "prompt": "a cat",
        "negativeprompt": "blurry",
        "model": "SDXL/m.safetensors",
        "seed": 1,
        "steps": 30,
        "cfgscale": 7.0,
        "sampler": "dpmpp_2m",
        "scheduler": "karras",
        "loras": ["l"],
        "loraweights": ["0.5"],
        **SIZE,
    }
    found = read(parameters={"sui_image_params": told})
    assert found.recipe == {
        **COMMON,
        **SIZE,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
        "model": "m",
        "loras": [{"path": "l", "weight": 0.5}],
    }


def test_tensor_art():
    told = {
        "prompt": "a cat",
        "negativePrompt": "blurry",
        "seed": "1",
        "steps": 30,
        "cfgScale": 7,
        "samplerName": "Euler a",
        "baseModel": {"modelFileName": "m"},
        "models": [{"type": "LORA", "modelFileName": "l", "weight": 0.5}],
        **SIZE,
    }
    found = read(generation_data=json.dumps(told) + "\0")
    loras = [{"path": "l", "weight": 0.5}]
    facts = {**COMMON, **SIZE, "sampler": "euler-ancestral", "model": "m", "loras": loras}
    assert found.recipe == facts


def test_civitai():
    told = {
        "prompt": "a cat",
        "negativePrompt": "blurry",
        "cfgScale": 7,
        "sampler": "Euler a",
        "steps": 30,
        "seed": 1,
    }
    found = read(parameters=told)
    assert (found.program, found.recipe) == ("Civitai", {**COMMON, "sampler": "euler-ancestral"})


@pytest.mark.parametrize(
    ("told", "skipped"),
    [
        ({"clipSkip": 2, "cfgScale": 7, "sampler": "Euler a"}, 1),
        ({"clipSkip": 1, "cfgScale": 7, "sampler": "Euler a"}, None),
        ({"clipSkip": 2, "samplerName": "Euler a"}, 1),
        ({"clip_skip": 2, "base_model": "m"}, 1),
        ({"clip_skip": 1, "base_model": "m"}, None),
        ({"clip_skip": True, "use_stable_diffusion_model": "m"}, 1),
    ],
)
def test_clip_skip_counts_from_one_in_web_uis(told: dict[str, object], skipped: int | None):
    assert read(parameters={"prompt": "a cat", **told}).recipe.get("clip_skip") == skipped


@pytest.mark.parametrize("key", ["Comment", "Description", "UserComment", "Parameters", "prompt"])
def test_the_web_uis_text_under_another_key(key: str):
    plain = "a cat\nNegative prompt: blurry\nSteps: 1, Seed: 2, Size: 8x8"
    assert read(**{key: plain}).recipe == read(parameters=plain).recipe
    assert programs.read({key: "Steps: walk, then run"}) is None or key == "prompt"


@pytest.mark.parametrize("text", ["\ufeffa cat\nSteps: 1, Seed: 2, Size: 8x8\0", None])
def test_a_mark_before_the_text_and_a_nul_after_it(text: str | None):
    plain = "a cat\nSteps: 1, Seed: 2, Size: 8x8"
    told = text or json.dumps({"parameters": plain})
    assert read(parameters=told).recipe == read(parameters=plain).recipe


@pytest.mark.parametrize("key", ["invokeai_metadata", "parameters"])
@pytest.mark.parametrize("before", ["", "\ufeff", " "])
def test_a_nul_after_json_and_json_in_json(key: str, before: str):
    told = INVOKE if key == "invokeai_metadata" else FOOOCUS
    plain = read(**{key: told})
    assert read(**{key: f"{before}{json.dumps(told)}\0"}).recipe == plain.recipe
    assert read(invokeai_metadata=json.dumps(json.dumps(INVOKE))).recipe["steps"] == 30


def test_several_programs_in_one_picture():
    found = read(parameters="a\nSteps: 1, Seed: 2, Size: 8x8", invokeai_metadata=INVOKE)
    assert (found.program, found.recipe["seed"]) == ("A1111", 2)
    assert found.notes == ["the picture also has settings of InvokeAI, which are not shown"]


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("Version: f2.0.1v1.10.1", "A1111 (Forge)"),
        ("App: SD.Next, Version: 1234", "A1111 (SD.Next)"),
        ("Civitai resources: []", "A1111 (Civitai)"),
        ("Version: v1.10.1", "A1111"),
    ],
)
def test_programs_that_write_the_web_uis_text(line: str, program: str):
    assert read(parameters=f"a\nSteps: 1, Seed: 2, {line}").program == program


def test_what_is_of_no_known_program():
    assert programs.read({"Software": "Paint", "Comment": "hello"}) is None
    assert read(parameters={"a": 1}).notes == ["its names and values are of no known form"]
    told = {"prompt": "a cat", "negative_prompt": "blurry", "cfg_scale": "7", "seed": 1, "x": 2}
    found = read(parameters=told)
    facts = {"prompt": "a cat", "negative": "blurry", "guidance": 7.0, "seed": 1}
    assert (found.recipe, found.other) == (facts, {"x": 2})
    assert read(prompt="a cat", seed="1", Software="x").recipe == {"prompt": "a cat", "seed": 1}
    assert read(prompt="{not JSON").notes == ["prompt: it cannot be read"]
    assert read(parameters='{"prompt": "a cat", "se').notes == ["parameters: it cannot be read"]
    assert read(parameters='{"a"|b} cat').recipe["prompt"] == '{"a"|b} cat'
    assert read(workflow={"nodes": [{"id": 1}]}).notes[0].startswith("there is the editor's")


@pytest.mark.parametrize("negative", ["blurry", "blurry,\nbad", ""])
def test_draw_things_in_words(negative: str):
    found = read(
        parameters=f"a cat,\n- and a dog\n-{negative}\nSteps: 30, Sampler: DPM++ 2M Karras, "
        "Guidance Scale: 7.0, Seed: 1, Size: 512x768, Model: m_q6p.ckpt, Strength: 1.0, "
        "Seed Mode: Scale Alike, Shift: 3.0, LoRA Model: a.ckpt, LoRA Weight: 0.8, "
        "LoRA Model: b.ckpt, LoRA Weight: 1.0"
    )
    assert found.program == "Draw Things"
    assert found.recipe == {
        **COMMON,
        **SIZE,
        "prompt": "a cat,\n- and a dog",
        "negative": negative,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
        "model": "m_q6p.ckpt",
        "loras": [{"path": "a.ckpt", "weight": 0.8}, {"path": "b.ckpt", "weight": 1.0}],
    }
    assert found.other == {"Seed Mode": "Scale Alike", "Shift": "3.0"}


@pytest.mark.parametrize(
    ("told", "prompt"),
    [
        ("Prompt: a cat; Negative: blurry; Model: m; Scheduler: DPM++ 2M; Seed: 1; Steps: 30; "
         "Guidance: 7.0; Generator: Mochi Diffusion 1.1", "a cat"),
        ("Date: 2024-01-01; Size: 512x768; Include in Image: a cat; a dog; Exclude from Image: "
         "blurry; Model: m; Scheduler: DPM++ 2M; Seed: 1; Steps: 30; Guidance Scale: 7.0; "
         "Generator: Mochi Diffusion 4.7", "a cat; a dog"),
        ("Metadata Version: 2\nInclude in Image: a cat\\n\\\\n; Model: x\nExclude from Image: "
         "blurry\nModel: m\nScheduler: DPM++ 2M\nSeed: 1\nSteps: 30\nGuidance Scale: 7.0\n"
         "Generator: Mochi Diffusion 7.0", "a cat\n\\n; Model: x"),
    ],
)  # fmt: skip
def test_mochi_diffusion(told: str, prompt: str):
    found = read(parameters=told)
    assert found.program == "Mochi Diffusion"
    size = SIZE if "Size" in told else {}
    assert found.recipe == COMMON | size | {"prompt": prompt, "sampler": "dpmpp-2m", "model": "m"}
    assert found.notes == []


def test_more_values_than_can_be_meant_are_refused():
    with pytest.raises(UndustError, match="InvokeAI has 5,000 entries"):
        read(invokeai_metadata={str(n): 1 for n in range(5000)})


@pytest.mark.parametrize(
    ("given", "kind", "number"),
    [
        *[("20", int, 20), ("20.0", int, 20), (20.0, int, 20), ("2.5", int, None)],
        *[(2.5, int, None), (True, int, None), ("nan", float, None), (1e999, int, None)],
        *[(str(2**64 - 1), int, 2**64 - 1), ("9" * 5000, int, None), ([], float, None)],
        *[("7,5", float, 7.5), ("1,234", int, 1234), ("1,234", float, 1.234), ("1,2", int, None)],
    ],
)
def test_numbers(given: object, kind: Any, number: object):
    assert as_number(given, kind) == number


KEYS = st.sampled_from(
    sorted({*INVOKE, *NOVEL, *FOOOCUS, *EASY, "c", "uc", "v2", "size", "lora", "image", "model"}
           | {"sui_image_params", "baseModel", "samplerName", "models", "model_weights", "extra"})
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=8).map(json.dumps)


@given(
    st.dictionaries(
        st.sampled_from(
            ["parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Comment",
             "Description", "fooocus_scheme", "generation_data", "workflow", "negative_prompt"]
        ),
        OBJECTS | st.text(max_size=20) | st.text('"\\-sSWHCA 19.[]k_euler', max_size=40),
        max_size=4,
    ),
    st.booleans(),
)  # fmt: skip
def test_any_texts_give_facts_or_an_error(texts: dict[str, str], novelai: bool):
    if novelai:
        texts["Software"] = "NovelAI"
    try:
        found = programs.read(texts)
    except UndustError:
        return
    assert found is None or all(isinstance(note, str) for note in found.notes)
