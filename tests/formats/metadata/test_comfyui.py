"""ComfyUI's graphs, made by hand after the node definitions of its nodes.py and comfy_extras."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats.metadata import comfyui
from undust.formats.metadata.found import Found

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def link(name: int, output: int = 0) -> list[Any]:
    return [str(name), output]


def graph(**changed: Any) -> Graph:
    """A picture from text: 1 checkpoint, 2 positive, 3 negative, 4 latent, 5 sampler, 7 saved."""
    nodes: Graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="sdxl\\some.safetensors"),
        "2": node("CLIPTextEncode", text="a cat", clip=link(1, 1)),
        "3": node("CLIPTextEncode", text="blurry", clip=link(1, 1)),
        "4": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "5": node(
            "KSampler",
            seed=2**64 - 1,
            steps=20,
            cfg=8.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
            model=link(1),
            positive=link(2),
            negative=link(3),
            latent_image=link(4),
        ),
        "6": node("VAEDecode", samples=link(5), vae=link(1, 2)),
        "7": node("SaveImage", images=link(6), filename_prefix="x"),
    }
    for name, each in changed.items():
        nodes[name.removeprefix("n")] = each
    return nodes


def read(nodes: object) -> Found:
    found = comfyui.read(json.dumps(nodes))
    assert found
    return found


def sampler(**inputs: Any) -> dict[str, Any]:
    told = {**graph()["5"]["inputs"], **inputs}
    return node("KSampler", **{name: value for name, value in told.items() if value is not None})


PLAIN = {
    "prompt": "a cat",
    "negative": "blurry",
    "seed": 2**64 - 1,
    "steps": 20,
    "guidance": 8.0,
    "sampler": "dpmpp-2m",
    "schedule": "karras",
    "model": "some",
    "width": 512,
    "height": 768,
}


def test_a_plain_graph():
    found = read(graph())
    assert (found.recipe, found.other, found.notes) == (PLAIN, {}, [])


@pytest.mark.parametrize("wrapped", [{"prompt": graph()}, {"prompt": json.dumps(graph())}])
def test_a_graph_inside_another_object(wrapped: dict[str, Any]):
    assert read(wrapped).recipe == PLAIN


def test_the_advanced_sampler():
    inputs = {**graph()["5"]["inputs"], "noise_seed": 7, "start_at_step": 0, "end_at_step": 10000}
    del inputs["seed"], inputs["denoise"]
    found = read(graph(n5=node("KSamplerAdvanced", add_noise="enable", **inputs)))
    assert (found.recipe, found.notes) == ({**PLAIN, "seed": 7}, [])


def test_a_base_and_its_refiner():
    base = {**graph()["5"]["inputs"], "noise_seed": 7, "start_at_step": 0, "end_at_step": 15}
    del base["seed"], base["denoise"]
    refine = {**base, "noise_seed": 8, "start_at_step": 15, "latent_image": link(5)}
    nodes = graph(
        n5=node("KSamplerAdvanced", **base),
        n8=node("KSamplerAdvanced", **refine),
        n6=node("VAEDecode", samples=link(8), vae=link(1, 2)),
    )
    found = read(nodes)
    assert found.recipe["seed"] == 7
    assert found.notes == [
        "its sampler ends at step 15 of 20; the rest is left out",
        "2 samplers, of which the first is shown: KSamplerAdvanced (5), then KSamplerAdvanced (8)",
    ]


def test_the_custom_sampler():
    custom = node(
        "SamplerCustom",
        add_noise=True,
        noise_seed=9,
        cfg=5.0,
        model=link(1),
        positive=link(2),
        negative=link(3),
        sampler=link(8),
        sigmas=link(9),
        latent_image=link(4),
    )
    nodes = graph(
        n5=custom,
        n8=node("KSamplerSelect", sampler_name="euler_ancestral"),
        n9=node("BasicScheduler", model=link(1), scheduler="sgm_uniform", steps=12, denoise=1.0),
    )
    assert read(nodes).recipe == {
        **PLAIN,
        "seed": 9,
        "guidance": 5.0,
        "steps": 12,
        "sampler": "euler-ancestral",
        "schedule": "sgm-uniform",
    }
    nodes["9"] = node("KarrasScheduler", steps=12, sigma_max=14.6, sigma_min=0.03, rho=7.0)
    assert read(nodes).recipe["schedule"] == "karras"
    nodes["8"] = node("SamplerDPMPP_2M_SDE", solver_type="midpoint", eta=1.0)
    assert read(nodes).notes == ["sampler: SamplerDPMPP_2M_SDE (8) has no known counterpart here"]


def advanced(guider: dict[str, Any]) -> Graph:
    return graph(
        n5=node(
            "SamplerCustomAdvanced",
            noise=link(10),
            guider=link(11),
            sampler=link(8),
            sigmas=link(9),
            latent_image=link(4),
        ),
        n8=node("KSamplerSelect", sampler_name="euler"),
        n9=node("BasicScheduler", model=link(1), scheduler="simple", steps=4, denoise=1.0),
        n10=node("RandomNoise", noise_seed=5),
        n11=guider,
    )


def test_the_advanced_custom_sampler_and_its_guiders():
    told = {**PLAIN, "seed": 5, "steps": 4, "sampler": "euler", "schedule": "trailing"}
    guided = {"model": link(1), "positive": link(2), "negative": link(3)}
    found = read(advanced(node("CFGGuider", cfg=3.5, **guided)))
    assert (found.recipe, found.notes) == ({**told, "guidance": 3.5}, [])
    found = read(advanced(node("BasicGuider", model=link(1), conditioning=link(2))))
    del told["negative"]
    assert (found.recipe, found.notes) == ({**told, "guidance": 1.0}, [])


def test_values_from_nodes_of_their_own():
    nodes = graph(
        n5=sampler(seed=link(8), steps=link(9), cfg=link(12), sampler_name=link(13)),
        n8=node("Seed (rgthree)", seed=77),
        n9=node("Reroute", value=link(10)),
        n10=node("PrimitiveInt", value=33),
        n12=node("FloatConstant", value=4.5),
        n13=node("PrimitiveString", value="heun"),
        n4=node("EmptyLatentImage", width=link(14), height=link(14), batch_size=1),
        n14=node("INTConstant", value=640),
    )
    nodes["9"]["inputs"] = {"": link(10)}
    changed = {"seed": 77, "steps": 33, "guidance": 4.5, "sampler": "heun"}
    assert read(nodes).recipe == {**PLAIN, **changed, "width": 640, "height": 640}


@pytest.mark.parametrize(
    ("nodes", "prompt", "notes"),
    [
        ({"n2": node("CLIPTextEncode", text=link(8)), "n8": node("Text", text="hat")}, "hat", 0),
        (
            {
                "n2": node("CLIPTextEncode", text=link(8)),
                "n8": node("StringConcatenate", string_a="a", string_b="b", delimiter=", "),
            },
            "a, b",
            0,
        ),
        (
            {
                "n2": node("CLIPTextEncode", text=link(8)),
                "n8": node("StringConcatenate", string_a=link(9), string_b="c", delimiter=", "),
                "n9": node("Text Concatenate", text_a=link(10), text_b=link(11), delimiter="; "),
                "n10": node("PrimitiveStringMultiline", value="a"),
                "n11": node("Text Multiline", text="b"),
            },
            "a; b, c",
            0,
        ),
        (
            {
                "n2": node("CLIPTextEncode", text=link(8)),
                "n8": node("CR Text Concatenate", text1=link(9), text2=link(9), separator="-"),
                "n9": node("Text", text="a"),
            },
            "a-a",
            0,
        ),
        ({"n2": node("CLIPTextEncodeSDXL", text_g="g", text_l="g", width=1024)}, "g", 0),
        ({"n2": node("CLIPTextEncodeSDXL", text_g="g", text_l="l", width=1024)}, "g", 1),
        ({"n2": node("CLIPTextEncodeFlux", clip_l="l", t5xxl="t", guidance=3.5)}, "t", 1),
        ({"n2": node("Reroute", **{"": link(8)}), "n8": node("CLIPTextEncode", text="r")}, "r", 0),
        (
            {
                "n2": node(
                    "ConditioningConcat", conditioning_to=link(8), conditioning_from=link(9)
                ),
                "n8": node("CLIPTextEncode", text="to"),
                "n9": node("CLIPTextEncode", text="from"),
            },
            "to\nBREAK\nfrom",
            0,
        ),
        (
            {
                "n2": node("ConditioningCombine", conditioning_1=link(8), conditioning_2=link(9)),
                "n8": node("CLIPTextEncode", text="one"),
                "n9": node("CLIPTextEncode", text="two"),
            },
            "one, two",
            1,
        ),
        (
            {
                "n2": node("ConditioningSetArea", conditioning=link(8), width=64, height=64),
                "n8": node("CLIPTextEncode", text="area"),
            },
            "area",
            0,
        ),
        (
            {
                "n2": node("FluxGuidance", conditioning=link(8), guidance=3.5),
                "n8": node("CLIPTextEncode", text="flux"),
            },
            "flux",
            0,
        ),
        (
            {
                "n2": node(
                    "ControlNetApply", conditioning=link(8), control_net=link(9), image=link(10)
                ),
                "n8": node("CLIPTextEncode", text="controlled"),
                "n9": node("ControlNetLoader", control_net_name="c.safetensors"),
                "n10": node("LoadImage", image="p.png"),
            },
            "controlled",
            1,
        ),
        ({"n2": node("MagicPrompt", topic=3)}, "", 1),
        ({"n2": node("ConditioningZeroOut", conditioning=link(3))}, "", 0),
        (
            {"n2": node("ConditioningCombine", conditioning_1=link(2), conditioning_2=link(2))},
            "",
            1,
        ),
    ],
)
def test_the_way_to_a_prompt(nodes: Graph, prompt: str, notes: int):
    found = read(graph(**nodes))
    assert found.recipe["prompt"] == prompt
    assert found.recipe["negative"] == "blurry"
    assert len(found.notes) == notes


def test_a_node_that_carries_both_prompts():
    nodes = graph(
        n5=sampler(positive=link(8, 0), negative=link(8, 1)),
        n8=node(
            "ControlNetApplyAdvanced",
            positive=link(2),
            negative=link(3),
            control_net=link(9),
            image=link(10),
        ),
        n9=node("ControlNetLoader", control_net_name="c.safetensors"),
        n10=node("LoadImage", image="p.png"),
    )
    found = read(nodes)
    assert (found.recipe["prompt"], found.recipe["negative"]) == ("a cat", "blurry")
    assert "with --control" in found.notes[0]


def test_the_efficient_loader():
    nodes = graph(
        n5=sampler(
            model=link(1, 0), positive=link(1, 1), negative=link(1, 2), latent_image=link(1, 3)
        ),
        n1=node(
            "Efficient Loader",
            ckpt_name="e.safetensors",
            lora_name="None",
            positive="p",
            negative="n",
            empty_latent_width=640,
            empty_latent_height=448,
        ),
    )
    sizes = {"width": 640, "height": 448}
    assert read(nodes).recipe == {**PLAIN, "model": "e", "prompt": "p", "negative": "n", **sizes}


def test_a_chain_of_loras():
    nodes = graph(
        n5=sampler(model=link(10)),
        n8=node("LoraLoader", model=link(1), clip=link(1, 1), lora_name="x/a.safetensors",
                strength_model=0.5, strength_clip=0.5),
        n9=node("LoraLoader", model=link(8), clip=link(8, 1), lora_name="b.safetensors",
                strength_model=0.8, strength_clip=0.3),
        n10=node("LoraLoaderModelOnly", model=link(9), lora_name="c.safetensors",
                 strength_model=1.0),
    )  # fmt: skip
    found = read(nodes)
    assert found.recipe["loras"] == [
        {"path": "a", "weight": 0.5},
        {"path": "b", "weight": 0.8},
        {"path": "c", "weight": 1.0},
    ]
    assert found.recipe["model"] == "some"
    assert found.notes == [
        "LoRA b.safetensors: 0.3 for the text encoder and 0.8 for the U-Net; there is one "
        "weight here, 0.8"
    ]


def test_rgthrees_loras_and_what_else_changes_the_model():
    nodes = graph(
        n5=sampler(model=link(9)),
        n8=node(
            "Power Lora Loader (rgthree)",
            model=link(1),
            lora_1={"on": True, "lora": "a.safetensors", "strength": 0.6},
            lora_2={"on": False, "lora": "b.safetensors", "strength": 1},
        ),
        n9=node("FreeU_V2", model=link(8), b1=1.3),
        n2=node("CLIPTextEncode", text="a cat", clip=link(10)),
        n10=node("CLIPSetLastLayer", clip=link(1, 1), stop_at_clip_layer=-2),
    )
    found = read(nodes)
    assert found.recipe["loras"] == [{"path": "a", "weight": 0.6}]
    assert found.recipe["clip_skip"] == 1
    assert found.notes == ["left out, changes of the model by: FreeU_V2 (9)"]


def test_a_stack_of_loras():
    stack = {f"lora_name_{n}": f"{n}.safetensors" for n in range(1, 5)}
    weights = {f"model_weight_{n}": n / 10 for n in range(1, 5)}
    nodes = graph(
        n8=node("CR Apply LoRA Stack", model=link(1), lora_stack=link(9)),
        n9=node("CR LoRA Stack", **stack, **weights, switch_2="Off", lora_count=3),
    )
    nodes["5"]["inputs"]["model"] = link(8)
    found = read(nodes)
    assert found.recipe["loras"] == [{"path": "1", "weight": 0.1}, {"path": "3", "weight": 0.3}]
    assert found.notes == []


def test_what_a_pipe_brings():
    loader = {"ckpt_name": "m.safetensors", "positive": "a cat", "negative": "b"}
    size = {"empty_latent_width": 512, "empty_latent_height": 768}
    sampler = {"steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "karras", "seed": 5}
    nodes = {
        "1": node("easy fullLoader", **loader, **size),
        "2": node("easy fullkSampler", pipe=link(1), **sampler),
    }
    found = read(nodes)
    told = {"prompt": "a cat", "negative": "b", "model": "m", "width": 512, "height": 768}
    assert told.items() <= found.recipe.items()
    assert found.notes == []
    del nodes["2"]["inputs"]["pipe"]
    assert "easy fullkSampler (2): its prompt was not found" in read(nodes).notes


def test_a_picture_begun_from():
    nodes = graph(
        n5=sampler(latent_image=link(8), denoise=0.5),
        n8=node("VAEEncode", pixels=link(9), vae=link(1, 2)),
        n9=node("LoadImage", image="begin.png"),
    )
    found = read(nodes)
    assert (found.recipe["strength"], found.recipe["steps"]) == (0.5, 40)
    assert "width" not in found.recipe
    assert found.other == {"init": "begin.png"}
    assert found.notes == ["20 steps at denoise 0.5 are the last of 40 here"]


def test_a_second_pass():
    nodes = graph(
        n6=node("VAEDecode", samples=link(9), vae=link(1, 2)),
        n8=node("LatentUpscale", samples=link(5), width=1024, height=1536),
        n9=sampler(latent_image=link(8), denoise=0.4, seed=3),
    )
    found = read(nodes)
    assert found.recipe == PLAIN
    assert found.notes == [
        "2 samplers, of which the first is shown: KSampler (5), then KSampler (9)"
    ]


@pytest.mark.parametrize(
    ("told", "field", "note"),
    [
        ({"sampler_name": "res_multistep"}, "sampler", "sampler: ComfyUI's 'res_multistep' has no"),
        ({"sampler_name": "deis"}, "sampler", "sampler: ComfyUI's 'deis' has no"),
        ({"scheduler": "beta"}, "schedule", "schedule: ComfyUI's 'beta' has no"),
        ({"steps": "many"}, "steps", "steps has to be a number, not 'many'"),
        ({"seed": [1, 2, 3]}, "seed", "seed has to be a number"),
    ],
)
def test_values_that_there_are_not_here(told: dict[str, Any], field: str, note: str):
    found = read(graph(n5=sampler(**told)))
    assert field not in found.recipe
    assert found.notes[0].startswith(note)


def test_civitais_generator():
    extra = {"prompt": "told", "negativePrompt": "", "steps": 5, "sampler": "Euler a", "seed": 8}
    nodes: dict[str, Any] = graph(n2=node("Smart", topic=1))
    nodes["extraMetadata"] = json.dumps(extra)
    found = read(nodes)
    assert (found.recipe["prompt"], found.recipe["steps"]) == ("told", 20)
    assert found.program == "ComfyUI (Civitai)"


def test_no_graph():
    for text in ("", "a cat", "[]", "{}", '{"a": 1}', '{"a": {"class_type": 1}}', "[" * 100_000):
        assert comfyui.read(text) is None
    assert read({"1": node("LoadImage", image="a.png")}).recipe == {}


def test_neither_cycles_nor_large_graphs_hang():
    cycle = {str(n): node("KSampler", seed=n, steps=link(n), positive=link((n + 1) % 9),
                          model=link((n + 1) % 9), latent_image=link((n + 1) % 9),
                          text=link((n + 2) % 9)) for n in range(9)}  # fmt: skip
    assert read(cycle).program == "ComfyUI"
    count = 8000
    chains = [
        lambda n: node("SaveImage", images=link(n + 1)),
        lambda n: node("KSampler", seed=link(n + 1), steps=link(n + 1), latent_image=link(n + 1),
                       positive=link(n + 1), sampler_name=link(n + 1)),
        lambda n: node("CLIPTextEncode", text=link(n + 1), text_g=link(n + 2)),
        lambda n: node("ConditioningCombine", c1cond=link(n + 1), c2cond=link(n + 2)),
        lambda n: node("LoraLoader", lora_name=link(n + 1), strength_model=link(n + 1),
                       model=link(n + 1)),
    ]  # fmt: skip
    for make in chains:
        nodes = {str(n + 10): make(n + 10) for n in range(count)}
        nodes |= graph(n5=sampler(positive=link(10), model=link(10), seed=link(10)))
        nodes["8"] = node("SaveImage", images=link(10))
        began = time.perf_counter()
        try:
            read(nodes)
        except UndustError as error:
            assert "LoRAs" in str(error)
        assert time.perf_counter() - began < 5


def test_a_text_that_many_nodes_say_is_not_repeated_without_end():
    long = "x" * 100_000
    nodes = {str(n + 20): node("CLIPTextEncode", text=long if n == 999 else link(1019))
             for n in range(1000)}  # fmt: skip
    nodes |= graph(n2=node("Combine", **{f"cond{n}": link(n + 20) for n in range(999)}))
    assert len(read(nodes).recipe["prompt"]) <= comfyui.MAX_PROMPT


KEYS = st.sampled_from(
    [
        *("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "model", "positive"),
        *("negative", "latent_image", "text", "text_g", "clip", "samples", "pixels", "image"),
        *("noise", "guider", "sampler", "sigmas", "conditioning", "lora_name", "lora_1", "width"),
        *("height", "ckpt_name", "stop_at_clip_layer", "start_at_step", "end_at_step", "value", ""),
    ]
)
VALUES = (
    st.tuples(st.integers(0, 6).map(str), st.integers(0, 2)).map(list)
    | st.integers(-3, 2**64)
    | st.floats()
    | st.sampled_from(["euler", "karras", "a.safetensors", "", None, True, [], [1], {"lora": "x"}])
)
CLASSES = st.sampled_from(
    ["KSampler", "SamplerCustomAdvanced", "CLIPTextEncode", "SaveImage", "LoraLoader", "Reroute",
     "EmptyLatentImage", "LoadImage", "ConditioningZeroOut", "KSamplerAdvanced", 5]
)  # fmt: skip
NODES = st.fixed_dictionaries(
    {"class_type": CLASSES, "inputs": st.dictionaries(KEYS, VALUES, max_size=12)}
)


@given(st.dictionaries(st.integers(0, 6).map(str), NODES | VALUES, max_size=7))
def test_any_graph_gives_facts_or_none(nodes: dict[str, Any]):
    found = comfyui.read(json.dumps(nodes))
    assert found is None or isinstance(found.notes, list)
