"""LoRAs that are trained here: no change at first, and the same picture in every program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from torch import Tensor

import undust
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.folder import read_json
from undust.training.lora import FILES, LoraConfig, LoraTask
from undust.training.run import train

Folder = Callable[[str], Path]
Recipe = Callable[..., LoraConfig]
ALL = {"rank": 3, "alpha": 1.7, "targets": ["all-linear", "convolutions"]}
OURS: dict[str, Any] = {"steps": 3, "sampler": "ddim", "schedule": "leading", "guidance": 3}
PROMPT = "sky over sand"


@pytest.fixture
def recipe(existing_recipe: Callable[..., Any]) -> Recipe:
    return partial(existing_recipe, "lora")


def noise() -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0))


def painted(model: undust.LatentDiffusion, *loras: Path) -> Tensor:
    """The latent that a model paints with LoRAs."""
    [picture] = model.generate(PROMPT, noise=noise(), loras=[*map(str, loras)], **OURS)
    return picture.latent


def by_diffusers(folder: Path, loras: Iterable[Path]) -> Iterator[Tensor]:
    """The same with each by diffusers, which has to use every tensor of the file."""
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    spare = {} if "XL" in kind.__name__ else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, **spare)
    pipe.set_progress_bar_config(disable=True)
    for lora in loras:
        pipe.load_lora_weights(lora.parent, weight_name=lora.name)
        networks = [
            getattr(pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")
        ]
        names = [name for each in networks if each for name, _ in each.named_parameters()]
        given = [name for name in safetensors_file.load(lora) if not name.endswith(".alpha")]
        assert sum(".lora_" in name for name in names) == len(given)
        yield pipe(
            PROMPT,
            latents=noise(),
            height=64,
            width=64,
            num_inference_steps=3,
            guidance_scale=3.0,
            output_type="latent",
        ).images[0]
        pipe.unload_lora_weights()


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("variant", ["sd1", "sd2-v", "sdxl"])
def test_before_the_first_step_no_bit_changes(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """Whatever layers are changed: B is 0. After a step it is not."""
    model = undust.load(variant_folder(variant))
    texts = [text.name for text in model.texts]
    task = LoraTask(recipe(variant_folder(variant), train=["unet", *texts], lora=ALL), tmp_path)
    layers = [
        layer
        for name in ("unet", *texts)
        for layer in model.networks[name].modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    assert len([*task.modules.parameters()]) == 2 * len(layers)
    assert torch.equal(painted(task.model), painted(model))
    task.losses(task.order.batch(0, 2))["loss"].backward()
    for name, parameter in task.modules.named_parameters():
        # The last layers of SDXL's text encoders have no part in its pictures.
        used = parameter.grad is not None or "text_encoder" in name
        assert used and (
            parameter.grad is None or name.endswith("down") == (not parameter.grad.any())
        )


@pytest.mark.parametrize("variant", ["sd1", "sd2-v", "sdxl"])
def test_both_files_give_the_trained_picture_here_and_in_diffusers(
    variant: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    folder = variant_folder(variant)
    model = undust.load(folder, merge_loras=False)
    texts = [text.name for text in model.texts]
    lora = {"rank": 2, "alpha": 0.7, "targets": ["attention", "ff.net.2"]}
    config = recipe(folder, train=["unet", *texts], lora=lora)
    assert train(config, tmp_path)
    trained = LoraTask(config, tmp_path / "again")
    state = safetensors_file.load(next(tmp_path.glob("checkpoints/*/average.safetensors")))
    trained.modules.load_state_dict(state)
    expected = painted(trained.model)
    assert apart(expected, painted(model)) > 1e-3
    files = {keys: tmp_path / "model" / name for keys, name in FILES.items()}
    assert torch.equal(painted(model, files["diffusers"]), expected)
    assert apart(painted(model, files["kohya"]), expected) < 1e-6
    for theirs in by_diffusers(folder, files.values()):
        assert apart(theirs, expected) < 1e-4


def test_peft_gives_the_same_output(variant_folder: Folder, recipe: Recipe, tmp_path: Path):
    """The U-Net alone, every layer, with the file's tensors in PEFT's own layers."""
    folder = variant_folder("sd1")
    assert train(recipe(folder, lora=ALL), tmp_path)
    tensors = safetensors_file.load(tmp_path / "model" / FILES["diffusers"])
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    modules = sorted({name.split(".lora_")[0].removeprefix("unet.") for name in tensors})
    config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=modules)
    theirs = peft.get_peft_model(theirs, config)
    named = {f"base_model.model.{k.removeprefix('unet.')}": v for k, v in tensors.items()}
    assert not peft.set_peft_model_state_dict(theirs, named).unexpected_keys
    task = LoraTask(recipe(folder, lora=ALL), tmp_path / "again")
    state = safetensors_file.load(next(tmp_path.glob("checkpoints/*/average.safetensors")))
    task.modules.load_state_dict(state)
    x, states, step = noise(), torch.randn(1, 77, 32), torch.tensor([500.0])
    cond = undust.networks.conditioning.Conditioning(1, states)
    with torch.no_grad():
        ours = task.model.unet(x, step, cond)
        torch.testing.assert_close(ours, theirs(x, step, states).sample, rtol=1e-4, atol=1e-5)


def test_the_file_says_what_it_was_made_of(variant_folder: Folder, recipe: Recipe, tmp_path: Path):
    assert train(recipe(variant_folder("sdxl"), lora={"rank": 2, "alpha": 0.5}), tmp_path)
    heads = {k: safetensors_file.header(tmp_path / "model" / FILES[k]) for k in FILES}
    about = json.loads(heads["diffusers"].metadata["undust"])
    assert (about["rank"], about["alpha"]) == (2, 0.5)
    assert about["base_model_hash"] == undust.load(variant_folder("sdxl")).hash
    assert about["recipe"]["lora"] == {"rank": 2, "alpha": 0.5}
    kohya = heads["kohya"].metadata
    assert kohya["ss_network_dim"] == "2"
    assert kohya["ss_network_alpha"] == "0.5"
    assert kohya["ss_base_model_version"] == "sdxl_base_v1-0"
    names = {"_".join(name.split("_")[:3]) for name in heads["kohya"].tensors}
    assert names == {"lora_unet_input", "lora_unet_middle", "lora_unet_output"}


def test_a_run_goes_on_as_if_it_had_not_stopped(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path, contents: Callable[[Path], Any]
):
    tables = {"prior": {"prompt": "a thing", "pictures": 2}, "train": ["unet", "text_encoder"]}
    for steps in (1, 3):
        config = recipe(variant_folder("sd1"), run={"steps": steps, "ema": 0.9}, **tables)
        assert train(config, tmp_path / "parts", resume=steps > 1)
    assert train(config, tmp_path / "whole")
    assert contents(tmp_path / "parts/model") == contents(tmp_path / "whole/model")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["to_x"]}, "lora.targets: to_x match nothing in unet; it has .*to_q, .*known"),
        ({"targets": ["to_q", "to_x"]}, "lora.targets: to_x match nothing in unet; it has .*to_q,"),
        ({"targets": []}, "lora.targets: "),
        (
            {"rank": 33, "targets": ["to_q"]},
            "rank is 33, but unet.*to_q is a matrix of 32 × 32,",
        ),
        ({"rank": 0}, "lora.rank: "),
        ({"dropout": 0.1}, "lora.dropout: is not known; known here: rank, alpha, targets"),
    ],
)
def test_bad_tables_are_refused(
    lora: dict[str, Any], message: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    with pytest.raises(UndustError, match=message) as error:
        LoraTask(recipe(variant_folder("sd1"), lora=lora), tmp_path)
    assert "\n" not in str(error.value)
