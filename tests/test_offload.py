"""Whole pictures on a device with less memory than the model: those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import undust
from elsewhere import ELSEWHERE, Device
from undust.errors import UndustError
from undust.pipeline import LatentDiffusion
from variants import build

PROMPT = "a (red:1.3) cat BREAK oil painting"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("offload")
    return {name: root / name for name in VARIANTS if not build(name).save(root / name)}


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A LoRA, a ControlNet and pictures for SD1."""
    root = tmp_path_factory.mktemp("adapters")
    model = undust.load(folders["sd1"])
    torch.manual_seed(0)
    lora: dict[str, Tensor] = {}
    for part, prefix in (("unet", "unet"), ("text_encoder", "text_encoder")):
        for name, module in model.networks[part].named_modules():
            if name.endswith(("to_q", "to_v", "q_proj", "conv1")):
                weight = module.get_parameter("weight")
                into = weight[0].numel()
                shape = (2, *weight.shape[1:])
                key = f"{prefix}.{name}.lora"
                lora[f"{key}_A.weight"] = torch.randn(shape) / into**0.5
                lora[f"{key}_B.weight"] = torch.randn(
                    (len(weight), 2, 1, 1) if weight.ndim == 4 else (len(weight), 2)
                )
    save_file(lora, root / "lora.safetensors")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet")
    network = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(8, 16, 16)
    )
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.save_pretrained(root / "control")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "picture.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 10:] = 255
    Image.fromarray(mask).save(root / "mask.png")
    control = f"{root / 'control'}={root / 'picture.png'}@0.8"
    return {
        "lora": {"loras": [f"{root / 'lora.safetensors'}:0.8"]},
        "control": {"controls": [control]},
        "init": {"init": root / "picture.png", "strength": 0.7},
        "mask": {"init": root / "picture.png", "mask": root / "mask.png"},
    }


CASES = [
    ("sd1", ("init", "guides")),
    ("sd1", ("lora", "control", "mask")),
    ("sd1-inpainting", ("mask",)),
    ("sdxl", ("refiner", "upscale")),
    ("x4-upscaler", ()),
]
VARIANTS = {name for name, _ in CASES} | {"sdxl-refiner"}


def options(
    variant: str, adds: tuple[str, ...], adapters: dict[str, Any], folders: dict[str, Path]
) -> dict[str, Any]:
    more = {
        "guides": {"guides": ["pag:scale=2", "apg"]},
        "refiner": {"refiner": f"{folders['sdxl-refiner']}@0.5"},
        "upscale": {"upscale": "1.5@0.5"},
        **adapters,
    }
    asked: dict[str, Any] = {"seed": 1, "steps": 2, "guidance": 3, "negative": "a dog", "size": 32}
    if variant == "x4-upscaler":
        small = Image.open(adapters["init"]["init"]).resize((16, 16))
        asked |= {"init": small, "size": None}
    for name in adds:
        asked |= more[name]
    return asked


def on_cpu(folder: Path, **given: Any) -> LatentDiffusion:
    """A model on the CPU, with kernels in the order that a GPU has them in: they round alike."""
    model = undust.load(folder, **given)
    for network in model.networks.values():
        network.to(memory_format=torch.channels_last)
    return model


def painted(model: LatentDiffusion, asked: dict[str, Any]) -> Tensor:
    return model.generate(PROMPT, **asked)[0].latent


def apart(a: Tensor, b: Tensor) -> float:
    """Not 0: where weights lie in memory decides on how products are cut."""
    assert b.isfinite().all()
    return float((a - b).norm() / b.norm())


def sizes(model: LatentDiffusion) -> list[int]:
    return sorted(
        sum(weight.nbytes for weight in network.state_dict().values())
        for network in model.networks.values()
    )


@pytest.mark.parametrize(("variant", "adds"), CASES, ids=str)
def test_the_picture_is_that_of_the_cpu(folders, adapters, variant, adds):
    asked = options(variant, adds, adapters, folders)
    expected = painted(on_cpu(folders[variant]), asked)
    with Device() as device:
        model = undust.load(folders[variant], device="cuda:0")
        assert device.used == 0  # nothing is brought before it is asked
        assert model.device == ELSEWHERE
        assert apart(painted(model, asked), expected) < 1e-5
    assert device.most > sizes(model)[-1]
    # Without room for all networks at once, some are sent home.
    room = max(int(0.9 * device.most), sizes(model)[-1] + 2**20)
    assert room < device.most
    with Device(room) as small:
        model = undust.load(folders[variant], device="cuda:0")
        assert apart(painted(model, asked), expected) < 1e-5
        assert apart(painted(model, asked), expected) < 1e-5
    assert small.most <= room


@pytest.mark.parametrize("merged", [True, False])
def test_loras_are_changed_on_the_device(folders, adapters, merged):
    worn, bare = options("sd1", ("lora",), adapters, folders), options("sd1", (), adapters, folders)
    [lora] = worn["loras"]
    weaker = {**worn, "loras": [lora.removesuffix(":0.8") + ":0.3"]}
    at_home = undust.load(folders["sd1"], merge_loras=merged)
    before = {name: network.state_dict() for name, network in at_home.networks.items()}
    with Device():
        model = undust.load(folders["sd1"], device="cuda:0", merge_loras=merged)
        expected = [painted(at_home, asked) for asked in (worn, weaker, bare)]
        for number in (0, 1, 2, 0, 2):
            assert apart(painted(model, (worn, weaker, bare)[number]), expected[number]) < 1e-5
        model._offload.clear()
    for name, network in model.networks.items():
        for key, weight in network.state_dict().items():
            assert torch.equal(weight, before[name][key]), f"{name}: {key}"


def test_what_is_too_large_is_refused_and_nothing_stays(folders, adapters):
    asked = options("sd1", (), adapters, folders)
    model = undust.load(folders["sd1"])
    expected, needed = painted(model, asked), sizes(model)[-1]
    with Device(needed // 2) as device:
        model = undust.load(folders["sd1"], device="cuda:0")
        with pytest.raises(UndustError, match=r"cuda:0 has not enough memory.*smaller pictures"):
            painted(model, asked)
        model._offload.clear()
        assert device.used < needed // 4
        device.room = None
        assert apart(painted(model, asked), expected) < 1e-5
        assert device.used > needed
        model._offload.clear()
        assert device.used < needed // 4


def test_a_first_stage_without_room_for_a_whole_picture_works_in_strips(folders):
    """As it does with large pictures: the same up to rounding, and what is left of the memory."""
    model = undust.load(folders["sd1"])
    latents = torch.randn(2, 4, 40, 40, generator=torch.manual_seed(0))
    pictures = torch.rand(2, 3, 160, 160, generator=torch.manual_seed(0)) * 2 - 1
    for ask, given in ((LatentDiffusion.decode, latents), (LatentDiffusion.encode, pictures)):
        expected = ask(model, given)
        with Device() as device:
            ask(undust.load(folders["sd1"], device="cuda:0"), given)
        room = int(0.6 * device.most)
        with Device(room) as small:
            found = ask(undust.load(folders["sd1"], device="cuda:0"), given)
        assert small.most <= room
        assert not torch.equal(found, expected)
        assert apart(found, expected) < 1e-5


def test_a_model_is_saved_from_the_device(folders, adapters, tmp_path):
    with Device():
        model = undust.load(folders["sd1"], device="cuda:0")
        painted(model, options("sd1", (), adapters, folders))
        model.save(tmp_path / "again")
    assert undust.load(tmp_path / "again").hash == undust.load(folders["sd1"]).hash


def test_half_precision_on_the_device(folders, adapters):
    asked = options("sd1", ("lora", "control"), adapters, folders)
    expected = painted(on_cpu(folders["sd1"], dtype=torch.bfloat16), asked)
    with Device():
        model = undust.load(folders["sd1"], dtype=torch.bfloat16, device="cuda:0")
        assert apart(painted(model, asked), expected) < 2e-2


@pytest.mark.parametrize("mistake", ["add", "index", "numpy"])
def test_the_device_is_one(mistake):
    """What stands in for a device refuses what a device would."""
    with Device(room=1000) as device:
        here, there = torch.ones(3), torch.ones(3, device="cuda:0")
        assert there.device == (there + 1).device == ELSEWHERE
        assert there.to("cpu").device == (here + there.sum().item()).device == torch.device("cpu")
        assert device.used == 12
        with pytest.raises((RuntimeError, TypeError)):
            {
                "add": lambda: here + there,
                "index": lambda: here[there.long()],
                "numpy": there.numpy,
            }[mistake]()
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(1000, device="cuda:0")
