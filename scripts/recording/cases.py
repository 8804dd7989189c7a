"""The calls whose results are recorded."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from recording.calls import (
    BUILT_IN,
    SAMPLERS,
    SCHEDULES,
    VARIANTS,
    WEIGHTINGS,
    UndustError,
    command_line,
    plain_recipe,
    sampled,
    trained,
)
from recording.hashes import canonical, pixel_bytes, sha, tensor_bytes, tensors_hash
from recording.inputs import (
    FAMILIES,
    PROCESSES,
    PROMPT,
    SIDE,
    TRAIN_DIFFUSION,
    TRAIN_FIRST_STAGE,
    seeded,
)

ADAPTIVE = ("dpm-adaptive", "rk45")  # of a schedule they take the ends alone; they are slow
Case = tuple[str, Callable[[], dict[str, str]]]
"""A name, and what gives the hashes by the groups that they are of."""


def pictures(name: str, model: str, prompts: Any = PROMPT, **options: Any) -> Case:
    loaded = options.pop("loaded", {})
    usual = {"seed": 7, "steps": 3, "guidance": 3.0, "sampler": "euler", "schedule": "karras"}
    usual |= {} if "init" in options else {"size": SIDE}
    asked = options.pop("bare", None) or {**usual, **options}
    return f"sampled/{name}", lambda: hashes(sampled(model, prompts, asked, **loaded))


def hashes(made: Iterable[Any]) -> dict[str, str]:
    made = list(made)
    return {
        "latents": sha(*(tensor_bytes(picture.latent) for picture in made)),
        "pixels": sha(*(pixel_bytes(picture.image) for picture in made)),
        "recipe": sha(*(canonical(plain_recipe(picture)) for picture in made)),
    }


def cases() -> Iterator[Case]:
    """All of them, those of one model together."""
    for variant in VARIANTS:
        model = f"models/{variant}"
        for (task, options), (worn, more) in product(tasks(variant), adorned(variant)):
            yield pictures(f"{variant}/{task}/{worn}", model, **options, **more)
        first = tasks(variant)[0][1]
        for kind in (*FAMILIES, "diffusers"):
            chosen = {"loras": [f"loras/{variant}-{kind}.safetensors:0.4"]}
            yield pictures(f"{variant}/lora/{kind}", model, **first, **chosen)
            beside = {"loaded": {"merge_loras": False}}
            yield pictures(f"{variant}/lora/{kind}-live", model, **first, **chosen, **beside)
        for name, guide in guides(variant).items():
            asked = {**first, "negative": "blurry dog", "guides": [guide]}
            yield pictures(f"{variant}/guide/{name}", model, **asked)
        yield pictures(f"{variant}/defaults", model, bare={"seed": 3, "steps": 3, **first})
        half = {"loaded": {"dtype": "bf16"}}
        yield pictures(f"{variant}/bf16", model, **first, **half)
        yield from prompts(variant, model, first)
    for pair in combinations(guides("sd1").items(), 2):
        (one, first), (other, second) = pair
        asked = {"negative": "blurry dog", "guides": [first, second]}
        yield pictures(f"sd1/guides/{one}+{other}", "models/sd1", **asked)
    for sampler, schedule in product(SAMPLERS, (*SCHEDULES, "9,3,0.5")):
        if sampler in ADAPTIVE and schedule not in ("karras", "trailing"):
            continue
        asked = {"sampler": sampler, "schedule": schedule, "size": SIDE // 2}
        yield pictures(f"sampler/{sampler}/{schedule}", "models/sd1", **asked)
    for process in PROCESSES:
        for sampler in ("ddim", "deis", "dpmpp-2m-sde", "lcm"):
            asked = {"sampler": sampler, "schedule": "trailing"}
            yield pictures(f"process/{process}/{sampler}", f"models/{process}", **asked)
        yield pictures(
            f"process/{process}/defaults", f"models/{process}", bare={"seed": 1, "steps": 4}
        )
    for name, options in {
        "text": {"prompts": ["a smiling cat", "웃는 고양이", "(red:1.3) heart"], "count": 2},
        "image": {"init": "start.png", "size": 64},
        "guides": {"guides": ["apg", "pag"]},
        "second-pass": {"upscale": "1.5@0.5"},
    }.items():
        yield pictures(f"built-in/{name}", BUILT_IN, **{"size": 64, **options})
    yield from commands()
    yield from training()


def tasks(variant: str) -> list[tuple[str, dict[str, Any]]]:
    """Options by task; the first task is the variant's own."""
    start, mask = {"init": "start.png"}, {"init": "start.png", "mask": "mask.png"}
    if variant == "x4-upscaler":
        small = {"init": "small.png"}
        return [("enlarge", small), ("enlarge-noisy", {**small, "noise_level": 150})]
    found: dict[str, dict[str, Any]] = {
        "text": {},
        **{f"image-{share}": {**start, "strength": share} for share in (0.35, 0.7, 1.0)},
        "inpaint": mask,
        "inpaint-0.6": {**mask, "strength": 0.6},
        "hole": {"init": "hole.png"},
        "extend": {**start, "extend": "8,0,4,3"},
        "second-pass": {"upscale": "1.5@0.5"},
    }
    if variant.startswith("sdxl"):
        found["framing"] = {"framing": "original=64x48,crop=4x8,target=32x64"}
    if variant != "sdxl-refiner":
        other = "sdxl-refiner" if variant == "sdxl" else variant.partition("-")[0]
        found["refiner"] = {"refiner": f"weak/{other}@0.5"}
    base = variant.removesuffix("-inpainting")
    one, two = (f"controls/{base}-{k}=hint-{k}.png" for k in range(2))
    found["control"] = {"controls": [f"{one}@0.7"]}
    found["controls"] = {"controls": [f"{one}@0.7:0-0.6", f"{two}@1.2:0.3-1"]}
    found["edges"] = {"controls": [one.replace("=", "=canny:")]}
    if "inpainting" in variant:
        found |= {f"inpaint-{name}": {**mask, **found.pop(name)} for name in ("control", "edges")}
        found = {"inpaint": mask, **found}
    return list(found.items())


def adorned(variant: str) -> list[tuple[str, dict[str, Any]]]:
    """Options that go with every task."""
    one, two = f"loras/{variant}-diffusers.safetensors", f"loras/{variant}-loha.safetensors"
    loras, stack = (
        [f"{one}:0.7", f"{two}:-0.3"],
        ["pag:scale=1", "apg:eta=0.2", "rescale:share=0.5"],
    )
    return [
        ("plain", {}),
        ("lora", {"loras": [one]}),
        ("loras", {"loras": loras}),
        ("stack", {"guides": stack}),
        ("loras-stack", {"loras": loras, "guides": stack}),
    ]


def guides(variant: str) -> dict[str, str]:
    return {
        "pag": "pag:scale=2",
        "seg": "seg",
        "seg-blur": "seg:scale=2,blur=1.5",
        "autoguidance": f"autoguidance:model=weak/{variant},scale=1.5",
        "rescale": "rescale",
        "rescale-epsilon": "rescale:share=0.4,output=epsilon",
        "threshold": "threshold:limit=1",
        "interval": "interval:low=0.5,high=5",
        "adaptive": "adaptive:threshold=0.5",
        "scales": "scales:values=6 2",
        "cfg++": "cfg++:scale=0.5",
        "apg": "apg:eta=0.5,norm=5,momentum=-0.3",
        "perp-neg": "perp-neg:weight=0.8",
        "and": "and:prompt=a dog,weight=0.5",
        "region": "region:prompt=a dog,mask=mask.png",
        "then": "then:prompt=a dog,after=0.4",
    }


def prompts(variant: str, model: str, first: Mapping[str, Any]) -> Iterator[Case]:
    """Texts, several at once, and what changes how they are read."""
    word = {"embeddings": [f"loras/{variant}-word.safetensors=<toy>"]}
    for name, (prompt, options) in {
        "emphasis": ("a (red:1.4) [cat] ((on)) \\(grass\\), (blurry:0.3)", {}),
        "break": ("a cat BREAK oil painting AND frames", {}),
        "long": (" ".join(f"(word {k}:1.{k % 10})" for k in range(60)), {}),
        "empty": ("", {"negative": ""}),
        "negative": (PROMPT, {"negative": "(blurry:1.2) dog"}),
        "negative-perp": (PROMPT, {"negative": "blurry", "guides": ["perp-neg"]}),
        "unguided": (PROMPT, {"guidance": 1.0}),
        "batch": ([PROMPT, "a dog", " ".join(["long"] * 90)], {"count": 2, "sampler": "ddpm"}),
        "exact": ([PROMPT, "a dog"], {"count": 2, "exact": True}),
        "noise": (PROMPT, {"noise": torch.randn(4, 8, 8, generator=seeded("noise"))}),
        "clip-skip": (PROMPT, {"clip_skip": 1}),
        "deep-cache": (PROMPT, {"deep_cache": 2}),
        "token-merging": (PROMPT, {"token_merging": 0.5}),
        "word": ("a <toy> on grass", word),
    }.items():
        yield pictures(f"{variant}/prompt/{name}", model, prompt, **{**first, **options})


def commands() -> Iterator[Case]:
    """From pictures back, and between two prompts."""
    for variant in ("sd1", "sdxl", "flow", "edm"):
        model, found = ["--model", f"models/{variant}"], ["--out", "noise.safetensors"]
        invert = [
            "invert",
            "start.png",
            PROMPT,
            *model,
            "--steps",
            "3",
            "--iterations",
            "3",
            *found,
        ]
        edit = ["generate", "a dog", *model, "--noise", *found[1:], "--sampler", "euler"]
        edit += ["--steps", "3", "--guidance", "1", "--out", "edit.png"]
        between = ["interpolate", PROMPT, "a dog", *model, "--count", "3", "--steps", "2"]
        between += ["--seed", "1", "--seed-to", "2", "--out", "between"]
        bits = ["likelihood", "start.png", "--prompt", PROMPT, *model, "--steps", "2", "--json"]
        for name, asked in {
            "invert": [[*invert, "--json"]],
            "edit": [invert, edit],
            "interpolate": [between],
            "likelihood": [bits],
        }.items():
            yield f"command/{name}/{variant}", partial(commanded, asked)


def commanded(asked: list[list[str]]) -> dict[str, str]:
    """What the last of the commands prints or writes."""
    Path("edit.png").unlink(missing_ok=True)
    shutil.rmtree("between", ignore_errors=True)
    for each in asked:
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(None):
            if command_line(each):
                raise UndustError(" ".join(each))
    if "--json" in asked[-1]:
        return {"text": sha(said.getvalue().encode())}
    images = [*Path().glob("edit.png"), *sorted(Path().glob("between/*.png"))]
    return {"pixels": sha(*(pixel_bytes(Image.open(path)) for path in images))}


def training() -> Iterator[Case]:
    """20 steps each. Every process and prediction meets every weighting, optimizer and caption."""
    for name, changed in {
        "plain": [],
        "muon": ["optimizer.kind=muon"],
        "l2": ["loss.pixel=l2", "loss.edges=0", "loss.kl=1e-3", "data.draw_by=concept"],
        "bf16": ["run.precision=bf16", "run.ema=0"],
    }.items():
        yield run(f"first-stage/{name}", TRAIN_FIRST_STAGE, changed)
    discrete, plain = ("linear", "scaled-linear", "sigmoid", "cosine"), ("sample", "v_prediction")
    kinds = [
        *((process, "epsilon", []) for process in discrete),
        *((process, output, []) for process, output in product(discrete, plain)),
        *(
            (process, output, ["diffusion.zero_terminal_snr=true"])
            for process in discrete[1::2]
            for output in plain
        ),
        ("flow", "flow", []),
        ("edm", "edm", ["diffusion.sigma_data=1.0"]),
        ("edm", "v_prediction", []),
    ]
    ways = list(product(("adamw", "muon"), ("captions", "none")))
    for process, output, more in kinds:
        weights = [name for name in WEIGHTINGS if name != "vlb" or process in discrete]
        for number, weight in enumerate(weights):
            optimizer, words = ways[number % len(ways)]
            changed = [f"diffusion.process={process}", f"diffusion.prediction={output}", *more]
            changed += [f"diffusion.weighting={weight}", f"optimizer.kind={optimizer}"]
            changed += ["captions.fields=[]"] * (words == "none")
            name = f"{process}{'-zero-snr' * (len(more) > 0 and 'zero' in more[0])}/{output}"
            yield run(f"{name}/{weight}-{optimizer}-{words}", TRAIN_DIFFUSION, changed)
    for name, changed in {
        "shift": ["diffusion.shift=3.0", "captions.drop=0.5", "run.batch=5"],
        "flow-shift": [
            "diffusion.process=flow",
            "diffusion.prediction=flow",
            "diffusion.shift=3.0",
        ],
        "text-embedding": [
            'unet.addition_embed_type="text"',
            "unet.addition_embed_type_num_heads=2",
        ],
        "bf16": ["run.precision=bf16"],
    }.items():
        yield run(f"more/{name}", TRAIN_DIFFUSION, changed)


def run(name: str, recipe: str, changed: list[str]) -> Case:
    def hashed() -> dict[str, str]:
        out = Path("run")
        shutil.rmtree(out, ignore_errors=True)
        Path("recipe.toml").write_text(recipe)
        losses = trained(Path("recipe.toml"), changed, out)
        return {
            "losses": sha(canonical(losses)),
            "checkpoint": tensors_hash(sorted(out.glob("checkpoints/*/*.safetensors"))),
            "model": tensors_hash(sorted(out.glob("model/**/*.safetensors"))),
            "preview": sha(*(pixel_bytes(Image.open(path)) for path in out.glob("samples/*.png"))),
        }

    return f"trained/{name}", hashed
