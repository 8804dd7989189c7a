"""NaN and infinity: the error names the network that makes them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

import undust
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import save_component
from undust.networks.config import ControlNetConfig
from undust.networks.controlnet import ControlNet
from undust.pipeline import LatentDiffusion
from variants import build


@pytest.fixture
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def error(model: LatentDiffusion, **options: object) -> str:
    """What painting with the model ends in."""
    with pytest.raises(UndustError) as found:
        model.generate("a cat", steps=2, sampler="euler", **options)
    return str(found.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("part", "weight", "name"),
    [
        ("unet", "conv_out.bias", "the U-Net"),
        ("text_encoder", "text_model.final_layer_norm.weight", "the text encoder"),
        ("vae", "decoder.conv_out.bias", "the first stage"),
    ],
)
def test_a_damaged_network_is_named(part, weight, name, value, tiny_model, tmp_path):
    """Through a file, as people have it."""
    model = copy.deepcopy(undust.load(tiny_model))
    model.networks[part].get_parameter(weight).data[1] = value
    model.save(tmp_path / "model")
    said = error(undust.load(tmp_path / "model"))
    assert said == f"{name} is damaged: {weight} holds NaN or infinity"


@pytest.mark.parametrize(
    ("variant", "part", "name"),
    [
        ("sdxl", "text_encoder", "the text encoder"),
        ("sdxl", "text_encoder_2", "the second text encoder"),
        ("sdxl-refiner", "text_encoder_2", "the text encoder"),
    ],
)
def test_of_two_text_encoders_the_damaged_one_is_named(variant, part, name):
    model = build(variant)
    model.networks[part].get_parameter("text_model.final_layer_norm.weight").data[1] = torch.nan
    model.networks[part].get_parameter("text_model.encoder.layers.0.mlp.fc1.bias").data[1] = (
        torch.nan
    )
    init = Image.new("RGB", (64, 64)) if "refiner" in variant else None
    assert error(model, size=64, init=init).startswith(f"{name} is damaged: text_model.encoder")


def test_a_network_that_overflows_is_named(tiny_model):
    model = undust.load(tiny_model, dtype="fp16")
    model.unet.conv_in.weight.data.fill_(6e4)
    model.unet.conv_out.weight.data.fill_(6e4)
    assert "the U-Net gives NaN or infinity in float16; its range" in error(model)
    model = undust.load(tiny_model)
    model.unet.conv_in.weight.data.fill_(3e38)
    assert error(model) == "the U-Net gives NaN or infinity in float32"


def test_a_text_encoder_that_overflows_is_named(tiny_model):
    model = undust.load(tiny_model, dtype="fp16")
    encoder = model.texts[0].encoder
    encoder.get_parameter("text_model.final_layer_norm.weight").data.fill_(6e4)
    encoder.get_parameter("text_model.final_layer_norm.bias").data.fill_(6e4)
    assert "the text encoder gives NaN or infinity in float16; its range may" in error(model)


def test_a_lora_that_leaves_the_range_is_named(tiny_model, tmp_path):
    model = undust.load(tiny_model, dtype="fp16")
    lora = {"unet.conv_out.diff": torch.full(tuple(model.unet.conv_out.weight.shape), 6e4)}
    safetensors_file.save(tmp_path / "strong.safetensors", lora)
    said = error(model, loras=f"{tmp_path / 'strong.safetensors'}:2")
    assert said.startswith("the U-Net with the LoRA strong is damaged: conv_out.weight holds NaN")
    assert error(undust.load(tiny_model), noise=torch.full((4, 8, 8), torch.nan)).startswith(
        "the latents became NaN or infinity between two steps: a lower guidance or another sampler"
    )


@pytest.mark.parametrize("damaged", [0, 1])
def test_the_controlnet_is_named(damaged, model, tmp_path):
    own = model.unet.config
    shared = {
        name: value for name, value in own.model_dump().items()
        if name in ControlNetConfig.model_fields
    }  # fmt: skip
    controls: list[str] = []
    Image.new("RGB", (32, 32), "grey").save(tmp_path / "map.png")
    for number in range(2):
        network = ControlNet(
            ControlNetConfig(
                **{**shared, "conditioning_embedding_out_channels": (8, 16, 16)},
            )
        )
        for parameter in network.parameters():
            parameter.data.normal_(std=0.02, generator=torch.manual_seed(number))
        if number == damaged:
            network.get_parameter("conv_in.bias").data[0] = torch.nan
        folder = tmp_path / f"net{number}"
        save_component(folder, network)
        controls.append(f"{folder}={tmp_path / 'map.png'}")
    said = error(model, controls=controls)
    assert said == f"ControlNet {damaged + 1} is damaged: conv_in.bias holds NaN or infinity"
