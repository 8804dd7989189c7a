"""undust inspect, of a checkpoint in one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from films import tiny_pipeline, write_single_file
from undust.formats import controlnet, safetensors_file
from undust.formats.original.checkpoint import to_original
from undust.formats.original.variants import VARIANTS
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from undust.networks.controlnet import from_unet
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

Run = Callable[..., Any]


def write(path: Path, **extra: torch.Tensor) -> None:
    text = TextEncoderConfig(
        vocab_size=20, hidden_size=64, intermediate_size=64, num_attention_heads=1
    )
    networks = {
        "unet": UNet(
            UNetConfig(
                block_out_channels=(64,),
                down_block_types=("CrossAttnDownBlock2D",),
                up_block_types=("CrossAttnUpBlock2D",),
                layers_per_block=1,
                cross_attention_dim=64,
                attention_head_dim=1,
                use_linear_projection=True,
            )
        ),
        "vae": Autoencoder(AutoencoderConfig(block_out_channels=(32, 32))),
        "text_encoder": TextEncoder(text),
    }
    parts = {name: (network.config, network.state_dict()) for name, network in networks.items()}
    safetensors_file.save(path, {**to_original(VARIANTS["sd2"], parts), **extra})


def test_a_checkpoint_is_known_and_says_by_what(undust: Run, here: Path):
    write(here / "any-name.safetensors", betas=torch.zeros(1000))
    facts = json.loads(undust("inspect", "any-name.safetensors", "--json").out)
    assert (facts["kind"], facts["variant"], facts["prediction"]) == (
        "checkpoint",
        "sd2",
        "epsilon",
    )
    assert facts["latent scale"] == 0.18215
    assert facts["beside"] == {"noise schedule": 1}
    assert facts["texts"] == [
        {"text": "text_encoder", "seen": "last layer and norm", "pooled": "no", "padding": "!"}
    ]
    held = sum(part["parameters"] for part in facts["parts"])
    assert held == facts["parameters"] - 1000
    where = " ".join(fact["where"] for fact in facts["evidence"])
    assert "input_blocks.0.0.weight [64, 4, 3, 3]" in where
    assert "output_blocks.1.1.transformer_blocks.0.norm1.bias" in where
    shown = undust("inspect", "any-name.safetensors")
    assert shown.code == 0
    assert "Stable Diffusion 2" in shown.out
    assert "text width 64" in shown.out


def test_what_is_no_checkpoint_is_still_described(undust: Run, here: Path):
    write(here / "whole.safetensors", **{"model.diffusion_model.stranger": torch.zeros(3)})
    facts = json.loads(undust("inspect", "whole.safetensors", "--json").out)
    assert facts["kind"] == "weights"
    assert facts["not a whole model"].endswith("1 unknown: model.diffusion_model.stranger")
    assert "sha256" in facts


def test_what_lies_beside_a_model_is_counted(undust: Run, here: Path):
    write(here / "whole.safetensors", stranger=torch.zeros(3))
    facts = json.loads(undust("inspect", "whole.safetensors", "--json").out)
    assert facts["kind"] == "checkpoint"
    assert facts["beside"]["unknown tensors"] == 1


def test_painting_with_what_cannot_be_is_one_line(undust: Run, here: Path):
    (here / "broken.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    done = undust("generate", "a cat", "--model", "broken.safetensors")
    assert done.code == 2
    assert "Git LFS pointer" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_what_goes_into_a_model_is_told(undust: Run, here: Path):
    down = torch.zeros(4, 768)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    safetensors_file.save(
        here / "lora.safetensors",
        {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": torch.zeros(320, 4),
            f"{name}.dora_scale": torch.ones(1, 768),
        },
    )
    facts = json.loads(undust("inspect", "lora.safetensors", "--json").out)
    told = {key: facts[key] for key in ("kind", "for", "modules", "ranks")}
    assert told == {
        "kind": "DoRA (LoRA)",
        "for": "Stable Diffusion 1",
        "modules": 1,
        "ranks": "4 (of 1)",
    }
    safetensors_file.save(here / "word.safetensors", {"emb_params": torch.ones(3, 768)})
    facts = json.loads(undust("inspect", "word.safetensors", "--json").out)
    assert (facts["kind"], facts["vectors"]) == ("textual inversion", "3x768")
    words = {"<s0>": torch.ones(2, 768), "<s1>": torch.ones(2, 768)}
    safetensors_file.save(here / "words.safetensors", words)
    facts = json.loads(undust("inspect", "words.safetensors", "--json").out)
    assert (facts["words"], facts["vectors"]) == ("<s0>, <s1>", "2x768")
    config = UNetConfig.read(
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 768,
        }
    )
    safetensors_file.save(
        here / "control.safetensors", controlnet.to_original(from_unet(UNet(config)))
    )
    facts = json.loads(undust("inspect", "control.safetensors", "--json").out)
    told = {key: facts[key] for key in ("kind", "text width", "channels")}
    assert told == {"kind": "ControlNet", "text width": 768, "channels": "32-64"}


def test_models_of_films(undust: Run, here: Path):
    tiny_pipeline(heads=1).save_pretrained(here / "folder")
    write_single_file(here / "svd_xt.safetensors", here / "folder")
    facts = json.loads(undust("inspect", "svd_xt.safetensors", "--json").out)
    assert (facts["variant"], facts["pixels"]) == ("svd", "1024x576")
    assert facts["process"] == "EDM, σ 0.002 … 700"
    assert [part["part"] for part in facts["parts"]] == ["unet", "vae", "image_encoder"]
    assert facts["evidence"][1]["says"] == "25 frames in training"
    facts = json.loads(undust("inspect", "folder", "--json").out)
    assert (facts["kind"], facts["frames"]) == ("model of films", 4)
    assert facts["process"] == "EDM, σ 0.002 … 700"
