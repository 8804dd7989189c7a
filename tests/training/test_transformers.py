"""DiT, PixArt's transformer and JiT: trained, resumed, sampled, saved and opened elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

import undust
from undust.diffusion.schedules import sigmas
from undust.errors import UndustError
from undust.generation.inversion import bits_per_dimension
from undust.networks.conditioning import Conditioning
from undust.pictures import from_image
from undust.training import kinds
from undust.training.diffusion import DiffusionConfig
from undust.training.run import train

COLOURS = {"green": 1, "red": 0, "blue": 2}  # of `pictures`, and their channels
COMMON = """
kind = "diffusion"
first_stage = {first_stage}
[data]
folder = {data}
size = 16
[optimizer]
learning_rate = 2e-3
warm_up = 1
[run]
steps = 4
batch = 4
ema = 0.95
checkpoint_every = 2
sample_every = 100000
"""
SMALL = "num_layers = 2\nnum_attention_heads = 2\nattention_head_dim = 8\n"
TEXT = """
[captions]
vocabulary = 600
length = 8
[text_encoder]
hidden_size = 8
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
"""
JIT = """
[jit]
patch_size = 4
hidden_size = 32
num_layers = 3
num_attention_heads = 2
bottleneck_dim = 16
in_context_len = 4
in_context_start = 1
[diffusion]
process = "flow"
prediction = "sample"
weighting = "velocity"
times = "logit-normal:mean=0.8,deviation=0.8"
"""
LABELS = '[labels]\ncolumn = "text"\n'
RECIPES = {
    "dit, classes": (False, f"[dit]\n{SMALL}{LABELS}"),
    "dit, nothing": (False, f"[dit]\n{SMALL}"),
    "pixart, text": (False, f"[pixart]\n{SMALL}{TEXT}"),
    "jit, classes": (True, JIT + LABELS),
    "jit, classes and text": (True, JIT + LABELS + TEXT),
    "jit, nothing": (True, JIT),
}
Recipe = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def transformer(pictures: Path, first_stage: Path, tmp_path: Path) -> Recipe:
    def read(name: str, *changes: str) -> DiffusionConfig:
        pixels, more = RECIPES[name]
        text = COMMON.format(
            data=json.dumps(str(pictures)),
            first_stage=json.dumps("pixels" if pixels else str(first_stage)),
        )
        path = tmp_path / "recipe.toml"
        path.write_text(text + more, "utf-8")
        config = kinds.read(path, changes)
        assert isinstance(config, DiffusionConfig)
        return config

    return read


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"jit, classes"}))
def test_it_trains_resumes_to_the_bit_and_is_loaded(
    name: str, transformer: Recipe, tmp_path: Path, contents: Contents
) -> None:
    for steps in (2, 4):
        train(transformer(name, f"run.steps={steps}"), tmp_path / "parts", resume=True)
    train(transformer(name), tmp_path / "whole")
    checkpoint = "checkpoints/step-00000004"
    assert contents(tmp_path / "parts" / checkpoint) == contents(tmp_path / "whole" / checkpoint)
    model = undust.load(tmp_path / "whole/model")
    assert model.classes == (("blue", "green", "red") if "classes" in name else ())
    asked = {"label": "red"} if "classes" in name else {}
    prompts = ["red"] if "text" in name else []
    given = {**asked, "seed": 1, "steps": 3}
    [picture] = model.generate(prompts, **given)
    assert picture.image.size == (16, 16)
    again = tmp_path / "again"
    model.save(again)
    [same] = undust.load(again).generate(prompts, **given)
    assert same.image.tobytes() == picture.image.tobytes()
    [guided] = model.generate(prompts, **given, guidance=30.0, guides=["apg:norm=5"])
    if "nothing" not in name:
        assert not torch.equal(guided.latent, picture.latent)
    index = json.loads((again / "model_index.json").read_text())
    pipeline = "DiTPipeline" if name.startswith("dit") else "DiffusionPipeline"
    assert index["_class_name"] == pipeline


def test_dit_opens_as_dit_pipeline(transformer: Recipe, tmp_path: Path) -> None:
    train(transformer("dit, classes", "run.steps=2"), tmp_path / "run")
    folder = tmp_path / "run/model"
    model = undust.load(folder)
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"blue": 0, "green": 1, "red": 2}
    latents, noise = pipe.transformer.config.sample_size, torch.Generator().manual_seed(3)
    start = torch.randn(1, 4, latents, latents, generator=torch.Generator().manual_seed(3))
    # Its null label is 1000 in any case, so that guidance needs as many classes.
    theirs = pipe(
        pipe.get_label_ids(["red"]),
        guidance_scale=1.0,
        num_inference_steps=4,
        generator=noise,
        output_type="pt",
    ).images[0]
    [ours] = model.generate(
        [], label="red", noise=start, sampler="ddim", schedule="leading", steps=4, guidance=1.0
    )
    difference = (from_image(ours.image, (16, 16)).float() - 255 * theirs).abs()
    assert difference.max() <= 1.5


@pytest.mark.parametrize("name", ["jit, classes", "dit, classes"])
def test_classes_are_obeyed(name: str, transformer: Recipe, tmp_path: Path) -> None:
    changes = ["run.steps=120", "run.batch=6"]
    if name.startswith("dit"):
        changes += ["first_stage=pixels", "dit.patch_size=4", "dit.attention_head_dim=16"]
        changes += ["diffusion.process=flow", "diffusion.prediction=sample"]
        changes += ["optimizer.learning_rate=1e-2"]
    train(transformer(name, *changes), tmp_path / "run")
    model = undust.load(tmp_path / "run/model")
    for colour, channel in COLOURS.items():
        [picture] = model.generate([], label=colour, seed=1, steps=10, guidance=2)
        assert from_image(picture.image, (16, 16)).float().mean((1, 2)).argmax() == channel


def test_jit_takes_no_perturbed_attention_and_dit_does(transformer: Recipe, tmp_path: Path) -> None:
    for name in ("jit, classes", "dit, classes"):
        train(transformer(name, "run.steps=2"), tmp_path / name)
        model = undust.load(tmp_path / name / "model")
        given = {"label": "red", "steps": 2, "guides": ["pag"]}
        if name.startswith("jit"):
            with pytest.raises(UndustError, match="neither perturbed attention"):
                model.generate([], **given)
        else:
            assert model.generate([], **given)


def test_self_conditioning(transformer: Recipe, tmp_path: Path, contents: Contents) -> None:
    """Chen et al. 2022, "Analog Bits", algorithm 2, written out with the network."""
    own = "self_conditioning=0.5"
    for steps in (2, 4):
        parts = transformer("jit, classes", own, f"run.steps={steps}")
        train(parts, tmp_path / "parts", resume=True)
    train(transformer("jit, classes", own), tmp_path / "whole")
    checkpoint = "checkpoints/step-00000004"
    assert contents(tmp_path / "parts" / checkpoint) == contents(tmp_path / "whole" / checkpoint)
    model = undust.load(tmp_path / "whole/model")
    assert model.self_conditioned
    assert model.unet.config.in_channels == 6
    with pytest.raises(UndustError, match="no probability flow"):
        bits_per_dimension(model, [], torch.zeros(1), steps=1, probes=1, seed=0)
    for number, parameter in enumerate(model.unet.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))

    def estimate(x: Tensor, sigma: Tensor, label: int, last: Tensor) -> Tensor:
        cond = Conditioning(1, label=torch.tensor([label]))
        both = torch.cat([x * model.process.input_scale(sigma), last], 1).float()
        with torch.no_grad():
            return model.unet(both, model.process.timestep(sigma)[None].float(), cond)

    start = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    given = {"label": "red", "steps": 3, "sampler": "euler", "guidance": 3.0}
    [picture] = model.generate([], noise=start, **given)
    levels = sigmas(picture.recipe.schedule, model.process, 3)
    x = model.process.start(start, levels[0])
    last = {2: torch.zeros_like(x), 3: torch.zeros_like(x)}  # red, and no class
    for sigma, following in pairwise(levels):
        last = {label: estimate(x, sigma, label, last[label]) for label in last}
        x0 = last[3] + 3.0 * (last[2] - last[3])
        x = x0 + (following / sigma) * (x - x0)
    torch.testing.assert_close(picture.latent, x[0].float(), atol=1e-4, rtol=1e-4)


def test_self_conditioning_in_training(transformer: Recipe, tmp_path: Path) -> None:
    """Algorithm 1: about half of the samples have the estimate of a call without gradients."""
    config = transformer("jit, nothing", "self_conditioning=0.5", "run.batch=64")
    task = config.complete().task(tmp_path, None, lambda _done, _all: None)
    network = task.modules["transformer"]
    for number, parameter in enumerate(network.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    calls: list[tuple[Tensor, Tensor]] = []
    network.register_forward_hook(
        lambda _module, given, output: calls.append((given[2].estimate, output))
    )
    task.losses(task.order.batch(0, 64))["loss"].backward()
    (nothing, first), (estimate, output) = calls
    assert not nothing.any()
    assert not first.requires_grad
    assert output.requires_grad
    chosen = estimate.flatten(1).any(1)
    assert torch.equal(estimate[chosen], first[chosen])
    assert 16 <= chosen.sum() <= 48
