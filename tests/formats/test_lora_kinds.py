"""Kinds of files for --lora that are not supported: named, and alike in every command."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from adapters import families
from adapters.families import IN, OUT, draw, net, prefixed
from undust.cli.inspect import describe
from undust.errors import UndustError
from undust.formats import extras, safetensors_file
from undust.formats.lora import peft_config
from undust.formats.lora.file import load_lora
from undust.formats.lora.summary import summarize

NAME = "lora_unet_linear"
# The names and shapes of LyCORIS 4.1 and of kohya's scripts, for a linear layer.
LYCORIS = {
    "GLoRA": {".a1.weight": (IN, 3), ".a2.weight": (3, IN), ".b1.weight": (OUT, 3), ".alpha": ()},
    "OFT": {".oft_blocks": (2, 4, 4), ".rescale": (OUT, 1), ".alpha": ()},
    "BOFT": {".oft_blocks": (3, 2, 4, 4), ".alpha": ()},
    "IA³": {".weight": (OUT,), ".on_input": ()},
    "T-LoRA": {".q_layer.weight": (3, IN), ".p_layer.weight": (OUT, 3), ".lambda_layer": (1, 3)},
}
PEFT = {
    "AdaLoRA": peft.AdaLoraConfig(total_step=9),
    "BOFT": peft.BOFTConfig(boft_block_size=4),
    "FourierFT": peft.FourierFTConfig(n_frequency=9),
    "HRA": peft.HRAConfig(r=2),
    "IA³": peft.IA3Config(feedforward_modules=[]),
    "OFT": peft.OFTConfig(oft_block_size=4, r=0),
    "VeRA": peft.VeraConfig(),
}


class Called(nn.Sequential):
    """A model that PEFT can change."""


def refused(path: Path, kind: str) -> None:
    """Every command says the same of the file."""
    text = f"its kind is {kind}, which is not supported; LoRA, LoHa, LoKr, DoRA and full"
    for read in (lambda: load_lora(path, {"unet": net()}), lambda: extras.kind_of(path)):
        with pytest.raises(UndustError) as error:
            read()
        assert str(error.value).startswith(f"{path}: {text}")
    facts = describe(path)
    assert facts["kind"] == kind
    assert facts["cannot be used"].startswith(text)


@pytest.mark.parametrize("kind", LYCORIS)
def test_kinds_of_lycoris(kind: str, tmp_path: Path):
    tensors = {NAME + name: torch.ones(shape) for name, shape in LYCORIS[kind].items()}
    safetensors_file.save(tmp_path / "a.safetensors", tensors)
    refused(tmp_path / "a.safetensors", kind)
    # Also beside modules that would fit: text encoders and norms may be of another kind.
    tensors |= prefixed("lora_unet_conv", families.lora((OUT, IN, 3, 3), draw(0)))
    safetensors_file.save(tmp_path / "a.safetensors", tensors)
    refused(tmp_path / "a.safetensors", kind)


@pytest.mark.parametrize("kind", PEFT)
def test_methods_of_peft(kind: str, tmp_path: Path):
    config = PEFT[kind]
    config.target_modules = ["0"]
    peft.get_peft_model(Called(nn.Linear(16, 16)), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    refused(path, kind)
    (tmp_path / "adapter_config.json").unlink()
    refused(path, kind)


def test_a_method_that_is_not_known_by_its_tensors(tmp_path: Path):
    path = tmp_path / "adapter_model.safetensors"
    safetensors_file.save(path, {"base_model.model.linear.new_A": torch.ones(2, 2)})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "NEWEST"}))
    refused(path, "PEFT's NEWEST")


@pytest.mark.parametrize(
    ("init", "kind"),
    [("pissa", "PiSSA"), ("pissa_niter_4", "PiSSA"), ("olora", "OLoRA"), ("loftq", "LoftQ")],
)
def test_adapters_beside_another_base(init: str, kind: str, tmp_path: Path):
    """PEFT takes the adapter as it began off the base model's weights, or quantises them."""
    config = peft.LoraConfig(target_modules=["linear"], r=3)
    config.init_lora_weights = init  # PEFT checks loftq against its own options and packages
    path = tmp_path / "adapter_model.safetensors"
    tensors = prefixed("base_model.model.linear", families.lora_without_alpha((OUT, IN), draw(0)))
    safetensors_file.save(path, tensors)
    config.save_pretrained(tmp_path)
    for read in (lambda: load_lora(path, {"unet": net()}), lambda: extras.kind_of(path)):
        with pytest.raises(UndustError, match=f"{kind}.*, which needs"):
            read()
    assert "which needs" in describe(path)["cannot be used"]
    config.init_lora_weights = True  # as PEFT's conversion writes it
    config.save_pretrained(tmp_path)
    assert load_lora(path, {"unet": net()}).changes["unet"].keys() == {"linear"}


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_beginnings_that_leave_the_base_alone(init: bool | str, tmp_path: Path):
    """PEFT's layer gives the base plus what undust's change is, for each of them."""
    torch.manual_seed(0)
    module = Called(nn.Linear(16, 16))
    base = module[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eva without its configuration
        config = peft.LoraConfig(init_lora_weights=init, target_modules=["0"], r=2, lora_alpha=3)
        theirs = peft.get_peft_model(module, config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    lora = load_lora(
        tmp_path / "adapter_model.safetensors", {"unet": nn.Sequential(nn.Linear(16, 16))}
    )
    change = lora.changes["unet"]["0"]
    ours = base + change.scale * change.weight.up @ change.weight.down
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(ours, merged.detach())


@pytest.mark.parametrize("option", ["use_qalora", "kasa_config", "alora_invocation_tokens"])
def test_variants_of_more_than_two_factors(option: str, tmp_path: Path):
    path = tmp_path / "adapter_model.safetensors"
    tensors = prefixed("base_model.model.linear", families.lora_without_alpha((OUT, IN), draw(0)))
    safetensors_file.save(path, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", option: [1]}))
    refused(path, peft_config.VARIANTS[option])


def test_a_controlnet_lllite(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors_file.save(path, {"lllite_unet_x.down.0.weight": torch.ones(2, 2)})
    refused(path, "ControlNet-LLLite")


def test_a_word_is_no_method(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors_file.save(path, {"road_sign": torch.ones(2, 8)})
    assert summarize(path) is None
    assert extras.kind_of(path) == extras.EMBEDDING


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ("transformer.x.lora_A.weight", "a transformer, not a U-Net"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", "Stable "
         "Diffusion XL"),
    ],
)  # fmt: skip
def test_the_model_is_told_alike(key: str, model: str, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors_file.save(path, {key: torch.ones(3, 2048)})
    with pytest.raises(UndustError, match=f"it looks like a LoRA for {model}; "):
        load_lora(path, {"unet": net()})
    assert describe(path)["for"] == model
