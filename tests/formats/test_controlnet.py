"""ControlNets from the forms in which people have them, and what is said of broken ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import save_component
from undust.formats.controlnet import load, to_original
from undust.networks.config import ControlNetConfig
from undust.networks.controlnet import ControlNet

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
# Tiny, but with the texts by whose width the number of heads is known.
KINDS = {
    "sd1": {
        "cross_attention_dim": 768,
        "block_out_channels": (32, 64),
        "down_block_types": (CROSS, PLAIN),
        "layers_per_block": 1,
        "attention_head_dim": 8,
    },
    "sd2": {
        "cross_attention_dim": 1024,
        "block_out_channels": (64, 128),
        "down_block_types": (CROSS, PLAIN),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
    },
    "sdxl": {
        "cross_attention_dim": 2048,
        "block_out_channels": (64, 128),
        "down_block_types": (PLAIN, CROSS),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
    },
    "sdxl, smaller": {
        "cross_attention_dim": 2048,
        "block_out_channels": (64, 128),
        "down_block_types": (CROSS, CROSS),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2),
        "transformer_layers_per_block": (0, 1),
        "use_linear_projection": True,
    },
}
SLOW = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], ControlNet]:
    """A ControlNet of each kind with random weights, always the same; not to be changed."""
    built: dict[str, ControlNet] = {}

    def of(kind: str) -> ControlNet:
        if kind not in built:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                built[kind] = ControlNet(ControlNetConfig(**KINDS[kind])).requires_grad_(False)
                for parameter in built[kind].parameters():
                    parameter += torch.randn_like(parameter)
        return built[kind]

    return of


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Tensors], Path]:
    def write(tensors: Tensors) -> Path:
        path = tmp_path / "net.safetensors"
        safetensors_file.save(path, tensors)
        return path

    return write


def same(a: ControlNet, b: ControlNet, dtype: torch.dtype = torch.float32) -> bool:
    ours, others = a.state_dict(), b.state_dict()
    return ours.keys() == others.keys() and all(
        torch.equal(tensor, others[name].to(dtype)) for name, tensor in ours.items()
    )


def refused(path: Path, says: str) -> str:
    with pytest.raises(UndustError, match=says) as error:
        load(path)
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 1500
    return said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_the_original_layout_there_and_back(kind, prefix, dtype, tiny, save) -> None:
    network = tiny(kind)
    file = {
        prefix + key.removeprefix("control_model."): tensor
        for key, tensor in to_original(network).items()
    }
    loaded = load(save(file), dtype)
    assert loaded.config == network.config
    assert same(loaded, network, dtype)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    if dtype is torch.float32:
        again = to_original(loaded)
        assert {prefix + key.removeprefix("control_model.") for key in again} == file.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_names_in_one_file(kind, tiny, save) -> None:
    network = tiny(kind)
    loaded = load(save(network.state_dict()))
    assert loaded.config == network.config
    assert same(loaded, network)


def test_a_configuration_beside_the_file_is_taken(tiny, save, tmp_path) -> None:
    network = tiny("sd1")
    path = save(network.state_dict())
    # What no tensor tells.
    said = {
        "controlnet_conditioning_channel_order": "bgr",
        "attention_head_dim": 4,
        "global_pool_conditions": True,
    }
    fields = {"_class_name": "ControlNetModel", **network.config.model_dump(mode="json"), **said}
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps(fields))
    for tensors in (network.state_dict(), to_original(network)):
        found = load(save(tensors))
        assert found.bgr
        assert found.pools
        assert found.config.attention_head_dim == 4
    save(network.state_dict())
    # That of something else says nothing of it.
    beside.write_text(json.dumps({**fields, "_class_name": "UNet2DConditionModel"}))
    assert load(path).config == network.config
    beside.write_text(json.dumps({**fields, "block_out_channels": [32, 96]}))
    refused(path, "does not fit: .* of another shape: .* instead of ")
    beside.write_text(json.dumps({**fields, "conditioning_channels": 1}))
    refused(path, r"net\.safetensors: config\.json: unsupported .* conditioning_channels = 1")
    beside.write_text("{")
    refused(path, "config.json is not JSON")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_diffusers(kind, variant, tiny, tmp_path) -> None:
    network = tiny(kind)
    theirs = ControlNetModel.from_config(network.config.model_dump(mode="json"))
    theirs.load_state_dict(network.state_dict())
    theirs.save_pretrained(tmp_path / "net", variant=variant)
    loaded = load(tmp_path / "net")
    assert loaded.config == network.config
    assert same(loaded, network)


def test_diffusers_opens_our_folder(tiny, tmp_path) -> None:
    network = tiny("sdxl")
    save_component(tmp_path / "net", network)
    theirs, told = ControlNetModel.from_pretrained(tmp_path / "net", output_loading_info=True)
    assert not any(told.values())
    assert all(
        torch.equal(tensor, network.state_dict()[name])
        for name, tensor in theirs.state_dict().items()
    )


def test_a_file_of_all_that_it_was_trained_with(tiny, save) -> None:
    network = tiny("sd1")
    beside = ("model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.bias")
    beside += ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "betas")
    file = {**to_original(network), **dict.fromkeys(beside, torch.zeros(3))}
    assert same(load(save(file)), network)


@pytest.mark.parametrize("names", ["theirs", "ours"])
@SLOW
@given(data=st.data())
def test_whatever_is_missing_is_named(names, data, tiny, save) -> None:
    network = tiny("sd1")
    file = {"theirs": to_original, "ours": ControlNet.state_dict}[names](network)
    key = data.draw(st.sampled_from(sorted(file)))
    rest = {name: tensor for name, tensor in file.items() if name != key}
    said = refused(save(rest), "missing|there is no|no ControlNet|unknown")
    # By its own name, or by its neighbours' if it is what shows that there are any.
    module = key.removeprefix("control_model.").split(".")[0]
    assert module in said or "with the original keys" in said or "not a ControlNet" in said


@pytest.mark.parametrize("names", ["theirs", "ours"])
@pytest.mark.parametrize("name", ["down_blocks.9.x", "\n", ""])
def test_whatever_is_unknown_is_named(names, name, tiny, save) -> None:
    network = tiny("sd1")
    file = {"theirs": to_original, "ours": ControlNet.state_dict}[names](network)
    said = refused(save({**file, name: torch.zeros(1)}), "1 unknown: ")
    assert name.strip() in said


def test_what_is_no_controlnet_says_what_it_is(tiny, save, tmp_path) -> None:
    file = to_original(tiny("sd1"))
    refused(save({"some_x.down.0.weight": torch.zeros(2)}), r"some_x \(1 tensors\)")
    refused(save({}), "not a ControlNet: .* but nothing$")
    refused(tmp_path / "absent.safetensors", "cannot be read")
    refused(tmp_path, "config.json cannot be read")
    whole = {key: tensor.long() for key, tensor in file.items()}
    refused(save(whole), r"holds torch\.int64, not weights")


@pytest.mark.parametrize(
    ("key", "kind", "whole"),
    [
        ("lora_controlnet", "a Control-LoRA", True),
        ("difference", "a ControlNet's difference from a base model", True),
        ("task_embedding", "a ControlNet-Union", True),
        ("control_model.control_add_embedding.linear_1.weight", "a ControlNet-Union", True),
        ("controlnet_blocks.0.weight", "a ControlNet for Flux or Stable Diffusion 3", False),
        ("image_proj.norm.weight", "an IP-Adapter", False),
        ("lllite_unet_input_blocks_4_1_x.down.0.weight", "a ControlNet-LLLite", False),
        ("adapter.body.0.resnets.0.block1.weight", "a T2I-Adapter", False),
        ("body.0.in_conv.weight", "a T2I-Adapter", False),
    ],
)
def test_what_is_not_supported_is_called_by_its_name(key, kind, whole, tiny, save) -> None:
    beside = to_original(tiny("sd1")) if whole else {"conv_in.weight": torch.zeros(2)}
    refused(save({**beside, key: torch.zeros(1)}), f"is {kind}, which is not supported; only whole")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"conditioning_channels": 1}, "config.json: unsupported ControlNetConfig: conditioning_"),
        ({"foo": 3}, "config.json: unsupported ControlNetConfig: foo = 3"),
        ({"_class_name": ["ControlNetModel"]}, r"is a component \['ControlNetModel'\], not Contr"),
    ],
)
def test_the_file_of_a_wrong_configuration_is_named(fields, said, tiny, tmp_path) -> None:
    folder = tmp_path / "net"
    save_component(folder, tiny("sd1"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    refused(folder, said)
    if "_class_name" not in fields:
        refused(folder / "diffusion_pytorch_model.safetensors", said)


@pytest.mark.parametrize("prefix", ["module.", "controlnet."])
@pytest.mark.parametrize("names", ["theirs", "ours"])
def test_prefixes_of_those_who_trained_it(names, prefix, tiny, save) -> None:
    network = tiny("sd1")
    file = {"theirs": to_original, "ours": ControlNet.state_dict}[names](network)
    file = {prefix + key.removeprefix("control_model."): tensor for key, tensor in file.items()}
    assert same(load(save(file)), network)
    refused(save({**file, "unet.conv_in.weight": torch.zeros(1)}), "1 unknown: unet.conv_in.weight")


def test_a_text_of_another_width_needs_a_configuration(save) -> None:
    network = ControlNet(ControlNetConfig(**{**KINDS["sd1"], "cross_attention_dim": 96}))
    refused(save(network.state_dict()), "text of 96 channels, .*known for 768, 1024, 2048")


@SLOW
@given(seed=st.integers(0, 2**32), names=st.sampled_from(["theirs", "ours"]))
def test_no_wrong_file_is_taken_for_a_right_one(seed, names, tiny, save) -> None:
    """Keys taken away, added, and tensors of other shapes, several at once."""
    chance = random.Random(seed)
    network = tiny("sd1")
    right = {"theirs": to_original, "ours": ControlNet.state_dict}[names](network)
    found = dict(right)
    for _ in range(chance.randint(1, 5)):
        key = chance.choice(sorted(found))
        match chance.randrange(3):
            case 0:
                del found[key]
            case 1:
                found[key + chance.choice([".weight", "s", ".0"])] = found[key]
            case _:
                shape = [*found[key].shape, 1]
                shape[chance.randrange(len(shape))] = chance.choice([0, 1, 2, 5])
                found[key] = torch.zeros(shape[: chance.randint(0, 4)])
    refused(save(found), "net")


def test_a_damaged_file_never_gets_further(tiny, save) -> None:
    """Files with a few bytes of their headers changed: a ControlNet, or one line why not."""
    path = save(to_original(tiny("sd1")))
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    for part in (0, 4, 8 + length // 2, 8 + length, len(whole) - 1):
        path.write_bytes(whole[:part])
        refused(path, "net")
    names = 0
    for _ in range(40):
        bad = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            bad[8 + chance.randrange(length)] = chance.randrange(256)
        path.write_bytes(bad)
        try:
            load(path)
        except UndustError as error:
            names += 1
            assert "\n" not in str(error)
    assert names > 20
