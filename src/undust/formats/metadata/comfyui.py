"""The settings in ComfyUI's graph of nodes in its API form: the PNG text `prompt`.

They are those of the first sampler that leads to a saved picture. Inputs are known by their names,
not by the node's class, because there are thousands of classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from undust.errors import limit_entries
from undust.formats.metadata import flat
from undust.formats.metadata.found import (
    MODEL_FILE,
    Found,
    as_json,
    as_list,
    as_number,
    as_object,
    base_name,
    texts_of,
)
from undust.formats.metadata.graph import (
    MAX_CHAIN,
    PARTS,
    TEXTS,
    Graph,
    Link,
    Node,
    link_of,
    read_nodes,
)

PROGRAM = "ComfyUI"
MODELS = ("ckpt_name", "unet_name", "base_ckpt_name", "model_name")  # a checkpoint's file
PER_ENCODER = {"text_g", "text_l", "t5xxl", "clip_l"}
JOINED = ("delimiter", "separator")
SAMPLES = ("latent_image", "samples", "latent", "pixels", "image", "images")
CONDITION = re.compile(r"cond|positive|negative", re.IGNORECASE)
# Inputs on the way from a sampler to its text that do not lead to text.
WITHOUT_TEXT = {
    *("clip", "model", "vae", "image", "images", "control_net", "mask", "style_model", "pixels"),
    *("clip_vision", "clip_vision_output", "latent", "samples"),
}
FIELDS = {  # the sampler's input -> the recipe's field
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "steps",
    "cfg": "guidance",
    "sampler_name": "sampler",
    "scheduler": "schedule",
    "denoise": "strength",
}
SIDES = (("width", "height"), ("empty_latent_width", "empty_latent_height"))
SCHEDULE_NODE = re.compile(
    r"(Karras|Exponential|Polyexponential)Scheduler"
)  # nodes that are a schedule
# Limits, far above real graphs: samplers in a row, nodes and characters of a prompt.
MAX_PASSES, MAX_CONDITIONS, MAX_PROMPT = 100, 1000, 2**17


def read(text: str) -> Found | None:
    """The settings in a graph, or None for any other text.

    Raises UndustError for a graph that samples with more LoRAs than can be meant.
    """
    given = as_object(text)
    if not read_nodes(given) and isinstance(given.get("prompt"), dict | str):
        given = as_object(given["prompt"])
    nodes = read_nodes(given)
    if not nodes:
        return None
    graph, found = Graph(nodes), Found(PROGRAM)
    samplers = _samplers(graph)
    if samplers:
        _sample(graph, samplers[0], found)
        if len(samplers) > 1:
            others = ", ".join(map(str, samplers[1:6]))
            found.notes.append(
                f"{len(samplers)} samplers, of which the first is shown: {samplers[0]}, then "
                f"{others}"
            )
    else:
        found.notes.append("no sampler was found among the nodes")
    _civitai(found, given)
    return found


def _is_sampler(node: Node) -> bool:
    """Whether a node is a sampler, by its inputs."""
    names = node.inputs.keys()
    custom = {"sampler", "sigmas"} <= names or node.kind.startswith("SamplerCustom")
    usual = "steps" in names and ("sampler_name" in names or "positive" in names)
    seeded = "seed" in names or "noise_seed" in names
    return custom or (usual and seeded)


def _samplers(graph: Graph) -> list[Node]:
    """The samplers that lead to a saved picture, the first pass first."""
    saving = [node for node in graph.nodes.values() if "save" in node.kind.lower()]
    used = {name for node in graph.nodes.values() for name, _ in node.links().values()}
    ends = saving or [node for node in graph.nodes.values() if node.name not in used]
    seen = set[str]()
    for end in ends or list(graph.nodes.values()):
        reached = graph.upstream((end.name, 0), lambda _, __: True, seen)
        if found := [node for node in reached if _is_sampler(node)]:
            return _in_order(graph, found)
    return []


def _in_order(graph: Graph, found: list[Node]) -> list[Node]:
    """The samplers, beginning with the first pass, found upstream of the nearest one."""
    first, seen = found[0], set[str]()
    while first.name not in seen and len(seen) < MAX_PASSES:
        seen.add(first.name)
        for link in (first.links().get(name) for name in SAMPLES):
            made = graph.upstream(link, lambda _, key: key in SAMPLES)
            before = next((node for node in made if _is_sampler(node)), None)
            if before and before.name not in seen:
                first = before
                break
    return [first, *(node for node in reversed(found) if node is not first)]


def _sample(graph: Graph, sampler: Node, found: Found) -> None:
    """Takes over a sampler's inputs."""
    links = _unpacked(sampler)
    # SamplerCustom's inputs come from separate nodes.
    parts = {
        name: list(graph.upstream(links.get(name), lambda _, key: key not in WITHOUT_TEXT))
        for name in ("noise", "sampler", "sigmas", "guider")
    }
    holders = [sampler, *(node for part in parts.values() for node in part)]
    for name, ours in FIELDS.items():
        values = (graph.scalar(node, name) for node in holders if name in node.inputs)
        value = next((each for each in values if each is not None), None)
        if value is not None and ours not in found.recipe:
            found.set(ours, value, name)
    for name, key in (("sampler", "sampler_name"), ("sigmas", "scheduler")):
        part = parts[name]
        if part and not any(key in node.inputs for node in part):
            if placed := SCHEDULE_NODE.match(part[0].kind):
                found.set_schedule(placed[1])
            else:
                found.notes.append(f"{name}: {part[0]} has no known counterpart here")
    guider = next(
        (node for node in parts["guider"] if node.inputs.keys() & {"positive", "conditioning"}),
        sampler,
    )
    if guider is not sampler and "positive" not in guider.inputs:
        found.recipe["guidance"] = 1.0  # ComfyUI's BasicGuider uses the prompt alone
    for field, name in (("prompt", "positive"), ("negative", "negative")):
        link = _unpacked(guider).get(name)
        if name == "positive":
            link = link or guider.links().get("conditioning")
        value = guider.inputs.get(name)
        if isinstance(value, str):
            found.recipe[field] = value
        elif link:
            found.recipe[field] = _text(graph, link, name, found)[:MAX_PROMPT]
        elif name == "positive":
            found.notes.append(f"{guider}: its prompt was not found")
    _model(graph, links.get("model") or guider.links().get("model"), found)
    _latent(graph, sampler, found)


def _unpacked(node: Node) -> dict[str, Link]:
    """The links of a node, with those that stand together in what a `pipe` brings."""
    links = node.links()
    pipe = next((link for key, link in links.items() if "pipe" in key), None)
    packed = dict.fromkeys(("model", "positive", "negative", "latent_image"), pipe)
    return {key: link for key, link in (packed | links).items() if link}


def _text(graph: Graph, start: Link, role: str, found: Found) -> str:
    """The text of a conditioning; role: positive or negative, for nodes with both."""
    told: list[str] = []
    waiting, seen, concat = [start], set[str](), False
    while waiting and len(seen) < MAX_CONDITIONS and sum(map(len, told)) < MAX_PROMPT:
        name, _ = waiting.pop()
        node = graph.nodes.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        concat = concat or "concat" in node.kind.lower()
        if isinstance(own := node.inputs.get(role), str):
            told.append(own)
            continue
        if node.kind == "ConditioningZeroOut":
            continue
        held = {key: node.inputs[key] for key in TEXTS if key in node.inputs}
        if held or _parts(node):
            told += _one_prompt(graph, node, held, found)
            _clip_skip(graph, node, found)
            continue
        links = _unpacked(node)
        follow = [links[role]] if role in links else []
        follow = follow or [link for key, link in links.items() if CONDITION.search(key)]
        follow = follow or [link for key, link in links.items() if key not in WITHOUT_TEXT]
        if "control_net" in links:
            found.notes.append(f"{node}: its ControlNet is left out; set one with --control")
        waiting += reversed(follow)
    if not told and not any(
        graph.nodes[each].kind == "ConditioningZeroOut" or _speaks(graph.nodes[each])
        for each in seen
    ):
        node = graph.nodes.get(start[0])
        found.notes.append(f"the {role} prompt could not be followed beyond {node or 'its link'}")
    if len(told) > 1 and not concat:
        found.notes.append(
            f"{len(told)} {role} prompts are combined; they are joined into one text"
        )
    return ("\nBREAK\n" if concat else ", ").join(told)


def _speaks(node: Node) -> bool:
    return any(isinstance(node.inputs.get(key), str) for key in (*TEXTS, *_parts(node)))


def _parts(node: Node) -> list[str]:
    """The inputs whose texts the node joins, in its order."""
    return [key for key in node.inputs if PARTS.fullmatch(key)]


def _one_prompt(graph: Graph, node: Node, held: Mapping[str, object], found: Found) -> list[str]:
    """The text of a node; the first of several for different encoders."""
    if not held:
        return texts_of([_spoken(graph, node, iter(range(MAX_CHAIN)))])
    texts = texts_of(_string(graph, value, iter(range(MAX_CHAIN))) for value in held.values())
    if PER_ENCODER & held.keys() and len(set(texts)) > 1:
        found.notes.append(
            f"{node}: its text encoders have different texts; the first one is shown"
        )
    return texts[:1]


def _string(graph: Graph, value: object, budget: Iterator[int]) -> str:
    """An input's text: its value, or that of the node it comes from; budget: nodes to visit."""
    if isinstance(value, str):
        return value
    source = graph.nodes.get(link[0]) if (link := link_of(value)) else None
    if source is None or next(budget, None) is None:
        return ""
    return _spoken(graph, source, budget)[:MAX_PROMPT]


def _spoken(graph: Graph, node: Node, budget: Iterator[int]) -> str:
    """The text that comes out of a node: the texts that it joins, or the first that it has."""
    parts = _parts(node)
    if parts:
        joint = next((node.inputs[key] for key in JOINED if key in node.inputs), " ")
        texts = texts_of(_string(graph, node.inputs[key], budget) for key in parts)
        return (joint if isinstance(joint, str) else " ").join(texts)
    own = [node.inputs[key] for key in TEXTS if key in node.inputs]
    texts = texts_of(_string(graph, value, budget) for value in own)
    if texts:
        return texts[0]
    given = [value for key, value in node.inputs.items() if key.startswith(("input", "any"))]
    return " ".join(texts_of(_string(graph, value, budget) for value in given))


def _clip_skip(graph: Graph, node: Node, found: Found) -> None:
    for source in graph.upstream(node.links().get("clip"), lambda _, key: key == "clip"):
        layer = as_number(source.inputs.get("stop_at_clip_layer"), int)
        if layer is not None and layer < -1:
            found.recipe["clip_skip"] = -layer - 1
            return


def _model(graph: Graph, link: Link | None, found: Found) -> None:
    """The checkpoint and the LoRAs of a sampler's model, the nearest ones last."""
    loras: list[tuple[str, object, object]] = []
    passed: list[str] = []
    for node in graph.upstream(link, _leads_to_model):
        own = list(_loras(graph, node))
        loras += own
        name = next(iter(texts_of(graph.scalar(node, key) for key in MODELS)), "")
        if name and "lora" not in node.kind.lower():
            if "model" not in found.recipe:
                found.set("model", name)
            continue
        if not own and not re.search(r"reroute|lora|loader", node.kind, re.IGNORECASE):
            passed.append(str(node))
    limit_entries("ComfyUI's LoRAs", loras)
    for name, unet, text in reversed(loras):
        found.add_lora(name, unet, text)
    if passed:
        found.notes.append(f"left out, changes of the model by: {', '.join(passed[:10])}")
    if "model" not in found.recipe:
        found.notes.append("the checkpoint could not be followed")


def _leads_to_model(_: Node, key: str) -> bool:
    return key in ("model", "lora_stack", "any", "") or "pipe" in key


def _loras(graph: Graph, node: Node) -> Iterator[tuple[str, object, object]]:
    """Name, weight for the U-Net and for the text encoder of a node's LoRAs, the last first."""
    name = graph.scalar(node, "lora_name")
    if isinstance(name, str) and name not in ("", "None"):
        unet = graph.scalar(node, "strength_model", "lora_model_strength", "strength")
        text = graph.scalar(node, "strength_clip", "lora_clip_strength")
        yield name, 1.0 if unet is None else unet, text
    for key, value in reversed(list(node.inputs.items())):
        told = as_object(value) if isinstance(value, dict) else {}
        stacked = re.fullmatch(r"lora_?(?:name_)?\d{1,4}", key)
        if isinstance(lora := told.get("lora"), str) and told.get("on", True):  # rgthree's
            yield lora, told.get("strength", 1), told.get("strengthTwo")
        elif stacked and isinstance(value, str) and MODEL_FILE.search(value):  # a stack's
            number = re.sub(r"\D", "", key)
            count = as_number(node.inputs.get("lora_count"), int)
            unused = count is not None and int(number) > count
            if unused or node.inputs.get(f"switch_{number}") == "Off":
                continue
            weights = (f"model_weight_{number}", f"lora_wt_{number}", f"strength_{number}")
            unet = graph.scalar(node, *weights)
            yield value, 1.0 if unet is None else unet, node.inputs.get(f"clip_weight_{number}")


def _latent(graph: Graph, sampler: Node, found: Found) -> None:
    """The size of an empty latent, or the initial image; steps are converted to ours."""
    recipe, begun = found.recipe, ""
    links = _unpacked(sampler)
    link = next((links[name] for name in SAMPLES if name in links), None)
    for node in graph.upstream(link, lambda _, key: key in SAMPLES or "pipe" in key):
        pair = SIDES["empty" not in node.kind.lower()]
        sides = [as_number(graph.scalar(node, name), int) for name in pair]
        if None not in sides:
            recipe["width"], recipe["height"] = sides
            break
        if "load" in node.kind.lower() and isinstance(node.inputs.get("image"), str):
            begun = base_name(node.inputs["image"])
            found.other["init"] = begun
            break
    strength = recipe.pop("strength", 1.0)
    start, end = (as_number(sampler.inputs.get(f"{at}_at_step"), int) for at in ("start", "end"))
    steps = recipe.get("steps")
    if isinstance(steps, int) and steps > 0:
        if start and 0 < start < steps:
            strength = 1 - start / steps
        elif 1e-3 < strength < 1 and begun:  # there, so many steps are taken; here, a share of them
            recipe["steps"] = int(steps / strength)
            found.notes.append(
                f"{steps} steps at denoise {strength:g} are the last of {recipe['steps']} here"
            )
        if end is not None and end < steps:
            found.notes.append(f"its sampler ends at step {end} of {steps}; the rest is left out")
    if begun:
        recipe["strength"] = strength
    elif strength != 1:
        found.notes.append(f"denoise {strength:g} of an empty latent has no counterpart here")
    if not begun and "width" not in recipe:
        found.notes.append("the size could not be followed")


def _civitai(found: Found, given: Mapping[str, Any]) -> None:
    """Settings of Civitai's generator that the graph lacks."""
    told = as_object(given.get("extraMetadata"))
    if not told:
        return
    extra = Found("Civitai")
    extra.take(told, flat.CIVITAI)
    found.program = "ComfyUI (Civitai)"
    found.recipe = {**extra.recipe, **{k: v for k, v in found.recipe.items() if v != ""}}
    found.other |= extra.other
    found.notes += extra.notes


def is_workflow(text: str) -> bool:
    """Whether a text is the editor's form of a graph, which has no names of inputs."""
    given = as_json(text)
    return isinstance(given, dict) and bool(as_list(as_object(given).get("nodes")))
