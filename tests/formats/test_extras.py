"""Pickled textual inversions, LoRAs and ControlNets become files that everybody reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import diffusers
import numpy as np
import peft
import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.families import IN, OUT, draw, lora, net, prefixed
from undust.errors import UndustError
from undust.formats import controlnet, safetensors_file, textual_inversion
from undust.formats.convert import check_target, open_model, size_in_bytes, write_model
from undust.formats.folder import load_weights
from undust.formats.lora.file import load_lora
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig

pytestmark = pytest.mark.usefixtures("quick_reader")

CONTROLNET = {
    "cross_attention_dim": 768,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
OTHERS = {
    name: torch.ones(2) for name in ("model.diffusion_model.a", "first_stage_model.b", "betas")
}
LINEAR = prefixed("lora_unet_linear", lora((OUT, IN), draw(0)))


def convert(source: Path, target: Path, layout: str = "single-file", **options) -> list[str]:
    check_target(source, target, layout)
    with open_model(source, target.parent) as found:
        return [*found.notes, *write_model(found.model, target, layout, **options)]


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )


def retrieved(path: Path) -> Tensor:
    """What diffusers reads as a word's vectors."""
    tokenizer = type("Tokenizer", (), {"get_vocab": lambda _: {}})()
    states = load_textual_inversion_state_dicts([str(path)])
    retrieve = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings
    return retrieve(["cat"], states, tokenizer)[1][0]


@pytest.fixture(scope="module")
def control() -> diffusers.ControlNetModel:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = diffusers.ControlNetModel(**CONTROLNET)
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
    return network


# Textual inversions


def test_automatic1111s_word(tmp_path):
    vectors = torch.randn(3, 8)
    word = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "cat",
        "step": 500,
        "sd_checkpoint": None,
    }
    torch.save(word, tmp_path / "cat.pt")
    notes = convert(tmp_path / "cat.pt", tmp_path / "cat.safetensors")
    assert notes == ["left out: name, sd_checkpoint, step, string_to_token"]
    assert torch.equal(retrieved(tmp_path / "cat.pt"), vectors)
    assert torch.equal(retrieved(tmp_path / "cat.safetensors"), vectors)
    assert same(textual_inversion.load(tmp_path / "cat.safetensors"), {"": vectors})


def test_a_word_of_the_published_training(tmp_path):
    vectors = torch.randn(1, 8).half()
    learnt = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": learnt}, tmp_path / "cat.pt")
    convert(tmp_path / "cat.pt", tmp_path / "cat.safetensors")
    assert torch.equal(retrieved(tmp_path / "cat.safetensors"), vectors)
    found = safetensors_file.header(tmp_path / "cat.safetensors")
    assert found.tensors == {"emb_params": (torch.float16, (1, 8))}
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize("count", [1, 2])
def test_diffusers_words_keep_their_names(count, tmp_path):
    words = {f"<cat-{number}>": torch.randn(8) for number in range(count)}
    torch.save(words, tmp_path / "learned_embeds.bin")
    convert(tmp_path / "learned_embeds.bin", tmp_path / "cat.safetensors")
    assert same(load_file(tmp_path / "cat.safetensors"), words)
    found = textual_inversion.load(tmp_path / "cat.safetensors", "<cat-0>")
    assert torch.equal(found[""][0], words["<cat-0>"])


def test_a_word_of_both_encoders_in_another_precision(tmp_path):
    word = {"clip_l": torch.randn(2, 8), "clip_g": torch.randn(2, 12), "name": "cat"}
    torch.save(word, tmp_path / "cat.pt")
    convert(tmp_path / "cat.pt", tmp_path / "cat.safetensors", dtype=torch.bfloat16)
    found = load_file(tmp_path / "cat.safetensors")
    assert same(found, {name: word[name].bfloat16() for name in ("clip_l", "clip_g")})


# LoRAs


def test_diffusers_lora(tmp_path):
    factors = {"lora_A.weight": torch.randn(2, 8), "lora_B.weight": torch.randn(8, 2)}
    layers = {f"mid_block.attentions.0.proj_in.{name}": t for name, t in factors.items()}
    for safe in (False, True):
        diffusers.StableDiffusionPipeline.save_lora_weights(
            tmp_path, unet_lora_layers=layers, safe_serialization=safe
        )
    convert(tmp_path / "pytorch_lora_weights.bin", tmp_path / "lora.safetensors")
    wanted = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert same(load_file(tmp_path / "lora.safetensors"), wanted)


def test_kohyas_lora_without_what_its_training_left(tmp_path):
    junk = {"optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}}, "loss": np.float64(0.1)}
    torch.save({"state_dict": {**LINEAR, "step": 7}, **junk}, tmp_path / "lora.ckpt")
    notes = convert(tmp_path / "lora.ckpt", tmp_path / "lora.safetensors")
    assert notes == ["left out: loss, optimizer, step"]
    assert same(load_file(tmp_path / "lora.safetensors"), LINEAR)
    path, told = tmp_path / "told.safetensors", {"ss_network_dim": "4", "format": "pt"}
    save_file(LINEAR, path, told)
    convert(path, tmp_path / "lora.safetensors", dtype=torch.float16)
    assert same(load_file(tmp_path / "lora.safetensors"), {k: t.half() for k, t in LINEAR.items()})
    assert safetensors_file.header(tmp_path / "lora.safetensors").metadata == told


def test_pefts_scale_comes_along(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["linear"], init_lora_weights=False)
    adapted = peft.get_peft_model(net(), config)
    adapted.save_pretrained(tmp_path / "peft", safe_serialization=False)
    convert(tmp_path / "peft" / "adapter_model.bin", tmp_path / "lora.safetensors")
    change = load_lora(tmp_path / "lora.safetensors", {"unet": net()}).changes["unet"]["linear"]
    assert change.scale == adapted.base_model.model.linear.scaling["default"] == 1.5


# ControlNets


def test_a_pickled_folder_of_a_controlnet(control, tmp_path):
    wanted = control.state_dict()
    control.save_pretrained(tmp_path / "a", safe_serialization=False, variant="fp16")
    assert convert(tmp_path / "a", tmp_path / "b", "folder") == []
    assert same(diffusers.ControlNetModel.from_pretrained(tmp_path / "b").state_dict(), wanted)
    assert convert(tmp_path / "b", tmp_path / "c.safetensors") == []
    assert same(controlnet.load(tmp_path / "c.safetensors").state_dict(), wanted)
    single = diffusers.ControlNetModel.from_single_file(
        str(tmp_path / "c.safetensors"), config=str(tmp_path / "b")
    )
    assert same(single.state_dict(), wanted)
    convert(tmp_path / "c.safetensors", tmp_path / "d", "folder", dtype=torch.bfloat16)
    halves = {name: tensor.bfloat16() for name, tensor in wanted.items()}
    assert same(load_weights(tmp_path / "d"), halves)


def test_a_controlnet_and_the_model_that_it_was_trained_with(control, tmp_path):
    control.save_pretrained(tmp_path / "a")
    tensors = controlnet.to_original(controlnet.load(tmp_path / "a"))
    torch.save({**tensors, **OTHERS}, tmp_path / "control.pth")
    notes = convert(tmp_path / "control.pth", tmp_path / "b.safetensors")
    assert notes == ["left out: the model it was trained with (3 tensors)"]
    assert same(load_file(tmp_path / "b.safetensors"), tensors)
    with open_model(tmp_path / "control.pth", tmp_path) as found:
        assert size_in_bytes(found.model, torch.float16) == sum(
            t.numel() * 2 for t in tensors.values()
        )


def test_a_configuration_beside_a_pickle_counts(control, tmp_path):
    network = diffusers.ControlNetModel(**{**CONTROLNET, "attention_head_dim": 4})
    network.save_pretrained(tmp_path / "a", safe_serialization=False)
    pickle = tmp_path / "a" / "diffusion_pytorch_model.bin"
    with open_model(pickle, tmp_path) as found:
        assert found.model.config.attention_head_dim == 4
        with pytest.raises(UndustError, match=r"store that the ControlNet's .*heads is 4"):
            write_model(found.model, tmp_path / "b.safetensors", "single-file")
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(UndustError, match=r"a/config\.json is not JSON"):
        convert(pickle, tmp_path / "c", "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_only_a_configuration_says_needs_it_beside(control, tmp_path):
    config = {**CONTROLNET, "global_pool_conditions": True}
    diffusers.ControlNetModel(**config).save_pretrained(tmp_path / "shuffle")
    with pytest.raises(UndustError, match="store that the ControlNet's pools is True: it would be"):
        convert(tmp_path / "shuffle", tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "shuffle" / "config.json", tmp_path)
    convert(tmp_path / "shuffle", tmp_path / "a.safetensors")
    assert controlnet.load(tmp_path / "a.safetensors").config.global_pool_conditions


# What is refused


def test_only_its_own_kind_is_replaced(control, tmp_path):
    save_file(LINEAR, tmp_path / "lora.safetensors")
    save_file({"emb_params": torch.ones(1, 8)}, tmp_path / "word.safetensors")
    stage = Autoencoder(AutoencoderConfig(block_out_channels=(32, 64)))
    write_model(stage, tmp_path / "stage.safetensors", "single-file")
    write_model(stage, tmp_path / "stage", "folder")
    control.save_pretrained(tmp_path / "net")
    convert(tmp_path / "net", tmp_path / "net.safetensors")
    kinds = {
        "lora": "a LoRA",
        "word": "a textual inversion",
        "stage": "a first stage",
        "net": "a ControlNet",
    }
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    for name, kind in kinds.items():
        for other, another in kinds.items():
            if name != other:
                source, target = (tmp_path / f"{which}.safetensors" for which in (name, other))
                with pytest.raises(UndustError, match=f"exists and is {another}, not"):
                    convert(source, target)
        with open_model(tmp_path / f"{name}.safetensors", tmp_path) as found:
            assert found.kind == kind
    with pytest.raises(UndustError, match="exists and is a first stage, not a ControlNet"):
        convert(tmp_path / "net.safetensors", tmp_path / "stage", "folder")
    assert {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [(LINEAR, "a LoRA"), ({"emb_params": torch.ones(1, 8)}, "a textual inversion")],
)
def test_what_is_one_file_is_no_folder(tensors, kind, tmp_path):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UndustError, match=f"{kind} is always a single file: its layout"):
        convert(tmp_path / "a.safetensors", tmp_path / "b" / "c", "folder")
    with (
        pytest.raises(
            UndustError, match=rf"a\.safetensors is {kind}, which has no moving averages"
        ),
        open_model(tmp_path / "a.safetensors", tmp_path, ema=True),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
