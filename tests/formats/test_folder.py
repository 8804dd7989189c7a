from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, VQModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import save_component
from undust.formats.folder import (
    MAX_BRACKETS,
    load_into,
    load_weights,
    read_json,
    read_model_index,
)
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import (
    AutoencoderConfig,
    TextEncoderConfig,
    TinyConfig,
    UNetConfig,
    VQConfig,
)
from undust.networks.text_encoder import TextEncoder
from undust.networks.tiny import TinyAutoencoder
from undust.networks.unet import UNet
from undust.networks.vq import VQAutoencoder
from undust.regular import LIMIT

AUTOENCODER = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4)
VQ = VQConfig(block_out_channels=(8, 16), norm_num_groups=4)
TINY = TinyConfig(
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
)
UNET = UNetConfig(
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=8,
    attention_head_dim=2,
)
TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def in_parts(folder: Path, weight_map: dict[str, str], parts: dict[str, dict[str, Tensor]]) -> None:
    index = {"metadata": {"total_size": 40}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for name, tensors in parts.items():
        safetensors_file.save(folder / name, tensors)


# JSON


def test_an_object_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"이름": [1, null]}', "utf-8")
    assert read_json(tmp_path / "a.json") == {"이름": [1, None]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"a": 1,\n "b" 2}', "line 2"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "is a JSON list; expected an object"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UndustError, match=reason) as caught:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_absent_or_too_large_is_refused(tmp_path: Path):
    with pytest.raises(UndustError, match=r"a\.json cannot be read: No such file"):
        read_json(tmp_path / "a.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(UndustError, match="larger than"):
        read_json(tmp_path / "large.json")
    (tmp_path / "brackets.json").write_text('{"a":[' + "[]," * MAX_BRACKETS + "[]]}")
    with pytest.raises(UndustError, match="over 100,000 brackets"):
        read_json(tmp_path / "brackets.json")


@given(content=st.binary(max_size=50) | st.text('{}[]":, 1a\\', max_size=50).map(str.encode))
def test_any_bytes_give_an_object_or_an_error(tmp_path_factory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except UndustError as error:
        assert "any.json" in str(error)


# model_index.json


def test_the_components_are_listed(tmp_path: Path):
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert read_model_index(tmp_path) == {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "text_encoder": ("transformers", "CLIPTextModel"),
    }


def test_a_component_cannot_lie_elsewhere(tmp_path: Path):
    (tmp_path / "model_index.json").write_text('{"../other": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(UndustError, match="not a component's name"):
        read_model_index(tmp_path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "it is empty$"),
        (["config.json", "model.safetensors"], "one component of a model"),
        (["scheduler_config.json"], "scheduler's folder"),
        (["metadata.jsonl", "a.png"], "data set"),
        (["state.json", "weights.safetensors"], "training run"),
        (["v1-5-pruned.safetensors"], r"single-file weights \(v1-5-pruned"),
        (["a", "b", "c", "d", "e"], "it holds a, b, c, d, …$"),
    ],
)
def test_a_folder_that_is_something_else_is_said_to_be(tmp_path: Path, files: list[str], reason):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(
        UndustError, match=r"not a model folder \(no model_index\.json\): "
    ) as caught:
        read_model_index(tmp_path)
    assert caught.match(reason)


def test_a_training_runs_model_is_named(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model").mkdir()
    with pytest.raises(UndustError, match=f"run published, {tmp_path / 'model'}$"):
        read_model_index(tmp_path)


def test_a_path_that_is_no_folder_is_said_to_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UndustError, match="it is a file"):
        read_model_index(tmp_path / "file")
    with pytest.raises(UndustError, match="it does not exist"):
        read_model_index(tmp_path / "nowhere")


# A component's weights


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model"])
def test_one_file_under_either_name(tmp_path: Path, stem: str, variant: str):
    safetensors_file.save(tmp_path / f"{stem}{variant}.safetensors", WEIGHTS)
    assert same(load_weights(tmp_path), WEIGHTS)


def test_full_precision_is_preferred(tmp_path: Path):
    safetensors_file.save(tmp_path / "model.safetensors", WEIGHTS)
    half = {name: tensor.half() for name, tensor in WEIGHTS.items()}
    safetensors_file.save(tmp_path / "model.fp16.safetensors", half)
    assert load_weights(tmp_path)["a"].dtype == torch.float32
    assert load_weights(tmp_path, torch.bfloat16)["a"].dtype == torch.bfloat16


def test_a_model_that_diffusers_saved_in_parts_is_loaded(tmp_path: Path):
    theirs = UNet2DConditionModel.from_config(UNET.model_dump())
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(load_weights(tmp_path), theirs.state_dict())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_parts_of_half_precision_have_an_index_of_their_own(tmp_path: Path, variant: str | None):
    unet = UNet2DConditionModel.from_config(UNET.model_dump())
    text = CLIPTextModel(CLIPTextConfig(**TEXT))
    for name, theirs, size in (("unet", unet, "10KB"), ("text", text, "1KB")):
        folder = tmp_path / name
        theirs.half().save_pretrained(folder, variant=variant, max_shard_size=size)
        if variant is None:
            theirs.half().save_pretrained(folder, variant="fp16", max_shard_size=size)
        assert len(list(folder.glob("*.index*.json"))) == (1 if variant else 2)
        prefix = "text_model." if name == "text" else ""
        loaded = load_weights(folder, torch.float32)
        whole = {prefix + key: tensor.float() for key, tensor in theirs.state_dict().items()}
        assert same(loaded, whole)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, r"1\.safetensors contradicts .*missing: b"),
        ({}, "weight_map"),
        ({"a": "../1.safetensors"}, "weight_map"),
        ({"a": "/etc/passwd"}, "weight_map"),
        ({"a": 1}, "weight_map"),
        ({"a": "2.safetensors"}, r"2\.safetensors cannot be read"),
    ],
)
def test_an_index_that_does_not_fit_its_parts(tmp_path: Path, weight_map: dict, reason: str):
    in_parts(tmp_path, weight_map, {"1.safetensors": {"a": WEIGHTS["a"]}})
    with pytest.raises(UndustError, match=reason):
        load_weights(tmp_path)


def test_a_part_with_more_than_the_index_says(tmp_path: Path):
    in_parts(tmp_path, {"a": "1.safetensors"}, {"1.safetensors": WEIGHTS})
    with pytest.raises(UndustError, match="1 unknown: b"):
        load_weights(tmp_path)


def test_weights_that_are_missing_or_pickled(tmp_path: Path):
    with pytest.raises(UndustError, match="does not exist"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(UndustError, match=r"model\.safetensors, but no files"):
        load_weights(tmp_path)
    for name in ("model.onnx", "openvino_model.bin"):  # of other programs
        (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(
        UndustError, match=r"model\.safetensors, but model\.onnx, openvino_model\.bin"
    ):
        load_weights(tmp_path)
    torch.save(WEIGHTS, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UndustError, match="pickle"):
        load_weights(tmp_path)


# Into a network


def test_weights_become_the_parameters():
    layer = nn.Linear(3, 2)
    load_into(layer, {"weight": WEIGHTS["a"], "bias": torch.ones(2)}, "here")
    assert torch.equal(layer.weight, WEIGHTS["a"])
    assert layer.weight.requires_grad


def test_training_loaded_weights_leaves_the_file(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    safetensors_file.save(path, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    before = path.read_bytes()
    layer = nn.Linear(3, 2)
    load_into(layer, load_weights(tmp_path), tmp_path)
    with torch.no_grad():
        layer.weight += 1
    assert layer.weight.sum() == 6
    assert path.read_bytes() == before


def test_what_does_not_fit_is_named_and_changes_nothing():
    layer = nn.Sequential(*(nn.Linear(3, 2) for _ in range(6)))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    wrong = {"0.weight": torch.zeros(5, 5), "0.bias": torch.zeros(2), "extra": torch.zeros(1)}
    with pytest.raises(UndustError) as caught:
        load_into(layer, wrong, "unet/model.safetensors")
    assert str(caught.value) == (
        "unet/model.safetensors does not fit its configuration: "
        "10 missing: 1.bias, 1.weight, 2.bias and 7 more; 1 unknown: extra; "
        "1 of another shape: 0.weight [5, 5] instead of [2, 3]"
    )
    assert same(dict(layer.state_dict()), before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_whole_numbers_are_no_weights(dtype: torch.dtype):
    module = nn.Linear(2, 1)
    given = {"weight": torch.ones(1, 2, dtype=dtype), "bias": torch.zeros(1)}
    with pytest.raises(UndustError, match=f"here .*: 1 no weights: weight of {dtype}"):
        load_into(module, given, "here")
    assert module.weight.is_floating_point()


def test_a_name_cannot_break_the_line():
    with pytest.raises(UndustError) as caught:
        load_into(nn.Identity(), {"two\nlines": torch.zeros(1)}, "here")
    assert str(caught.value).endswith(r"1 unknown: 'two\nlines'")


def test_what_diffusers_saved_is_loaded(tmp_path: Path):
    theirs = AutoencoderKL.from_config(AUTOENCODER.model_dump())
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder(AutoencoderConfig.read(read_json(tmp_path / "config.json")))
    load_into(ours, load_weights(tmp_path), tmp_path)
    assert same(dict(ours.state_dict()), theirs.state_dict())


def test_what_transformers_saved_is_loaded(tmp_path: Path):
    theirs = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    theirs.save_pretrained(tmp_path)
    ours = TextEncoder(TextEncoderConfig.read(read_json(tmp_path / "config.json")))
    load_into(ours, load_weights(tmp_path), tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).last_hidden_state)


def test_old_names_and_constants_are_understood(tmp_path: Path):
    """As in Stable Diffusion 1.5's files; diffusers itself is asked whether it agrees."""
    network = Autoencoder(AUTOENCODER)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        for new, former in old_names.items():
            name = name.replace(f".{new}.", f".{former}.")
        old[name] = tensor
    assert sum("proj_attn" in name for name in old) == 4
    save_component(tmp_path, network)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    safetensors_file.save(weights, old, {"format": "pt"})
    assert same(load_weights(tmp_path), dict(network.state_dict()))
    assert same(AutoencoderKL.from_pretrained(tmp_path).state_dict(), dict(network.state_dict()))

    encoder = TextEncoder(TextEncoderConfig(**TEXT))
    constant = {"text_model.embeddings.position_ids": torch.arange(10)[None]}
    load_into(encoder, {**encoder.state_dict(), **constant}, "text_encoder")


# Out of a network


@pytest.mark.parametrize(
    ("network", "theirs"),
    [
        (Autoencoder(AUTOENCODER), AutoencoderKL),
        (VQAutoencoder(VQ), VQModel),
        (TinyAutoencoder(TINY), AutoencoderTiny),
        (UNet(UNET), UNet2DConditionModel),
        (TextEncoder(TextEncoderConfig(**TEXT)), CLIPTextModel),
    ],
    ids=["autoencoder", "vq", "tiny", "unet", "text encoder"],
)
def test_what_is_saved_opens_elsewhere_and_here(tmp_path: Path, network: nn.Module, theirs: type):
    folder = tmp_path / "model" / "part"
    save_component(folder, network)
    opened, report = theirs.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    prefix = "text_model." if theirs is CLIPTextModel else ""  # left off in transformers' memory
    ours = {name.removeprefix(prefix): tensor for name, tensor in network.state_dict().items()}
    assert same(ours, opened.state_dict())
    again = type(network)(type(network.config).read(read_json(folder / "config.json")))
    load_into(again, load_weights(folder), folder)
    assert again.config == network.config
    assert same(dict(again.state_dict()), dict(network.state_dict()))


def test_a_component_is_saved_in_another_precision(tmp_path: Path):
    save_component(tmp_path, Autoencoder(AUTOENCODER), torch.float16)
    loaded = load_weights(tmp_path)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float16}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UndustError, match=r"cannot make the folder .*file/vae: Not a directory"):
        save_component(tmp_path / "file" / "vae", Autoencoder(AUTOENCODER))
