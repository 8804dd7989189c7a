"""Files of weights: safetensors, checkpoints, LoRAs, textual inversions, ControlNets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from torch import nn

from fuzzing.cases import Asks, Make, asks, kind
from fuzzing.changes import WIDTHS, Entries, json_changed, weights
from fuzzing.originals import checkpoint, drawn, entries_of, text_encoder, unet
from undust.adapters.applied_loras import LoraSet
from undust.formats import controlnet, safetensors_file, textual_inversion
from undust.formats.lora import file as lora
from undust.formats.networks import empty_network
from undust.formats.original import model as single_file
from undust.formats.original.checkpoint import scan_checkpoint
from undust.networks.config import (
    ControlNetConfig,
)
from undust.networks.controlnet import ControlNet
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet


@kind(22)
def headers(_: Path) -> Make:
    plain: Entries = {f"{name}.weight": (name, (2, 3)) for name in WIDTHS}
    plain |= {"number": ("F32", ()), "nothing": ("F16", (0, 4)), "größe.名前": ("BF16", (5,))}
    files = {
        "sd1": checkpoint("sd1"),
        "sd2": checkpoint("sd2"),
        "sdxl": checkpoint("sdxl"),
        "vae": {k: e for k, e in checkpoint("sd1").items() if k.startswith("first_stage_model")},
        "whole": checkpoint("sd1", 49408, 77),
    }

    def make(chance: Random, folder: Path) -> Asks:
        path = folder / "some.safetensors"
        if chance.random() < 0.8:
            size = weights(chance, path, plain, {"format": "pt", "a": "b"})
            dtype = chance.choice((None, torch.float32, torch.float16))
            return asks(chance, path, size, lambda: safetensors_file.load(path, dtype))
        name = chance.choice(list(files))
        size = weights(chance, path, files[name], {})
        if name == "whole":
            return asks(
                chance, path, size, lambda: single_file.load_single_file(path, torch.float32)
            )
        return asks(chance, path, size, lambda: scan_checkpoint(path, ema=chance.random() < 0.1))

    return make


@kind(12)
def loras(_: Path) -> Make:
    networks = {
        "unet": drawn(UNet(unet())),
        "text_encoder": drawn(TextEncoder(text_encoder(99, 7))),
    }
    applied = LoraSet(networks)
    families: dict[str, Callable[[int, int], dict[str, tuple[int, ...]]]] = {
        "lora": lambda o, i: {
            ".lora_up.weight": (o, 2),
            ".lora_down.weight": (2, i),
            ".alpha": (),
            ".dora_scale": (o, 1),
        },
        "hada": lambda o, i: {
            **{f".hada_w{n}_a": (o, 2) for n in (1, 2)},
            **{f".hada_w{n}_b": (2, i) for n in (1, 2)},
        },
        "lokr": lambda o, i: {
            ".lokr_w1": (2, 2),
            ".lokr_w2_a": (o // 2, 2),
            ".lokr_w2_b": (2, i // 2),
        },
        "diff": lambda o, i: {".diff": (o, i), ".diff_b": (o,)},
        "peft": lambda o, i: {".lora_A.weight": (2, i), ".lora_B.weight": (o, 2)},
    }
    peft = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 8}, "use_rslora": True}
    told = json.dumps({f"unet.{key}": value for key, value in peft.items()})
    modules = [
        (part, name, tuple(layer.weight.shape))
        for part, network in networks.items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    ]

    def make(chance: Random, folder: Path) -> Asks:
        path = folder / "some.safetensors"
        entries: Entries = {}
        for _ in range(chance.choice((1, 1, 2, 6))):
            part, name, shape = chance.choice(modules)
            family = chance.choice(list(families))
            flat = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + name.replace(".", "_")
            called = f"{part}.{name}" if family == "peft" or chance.random() < 0.2 else flat
            for role, lengths in families[family](*shape).items():
                entries[called + role] = (chance.choice(("F16", "F32", "BF16")), lengths)
        metadata = {"lora_adapter_metadata": told, "ss_network_dim": "2"}
        size = weights(chance, path, entries, metadata if chance.random() < 0.4 else {})

        def ask() -> None:
            read = lora.load_lora(path, networks)
            applied.applied([(read, 0.5)])

        return asks(chance, path, size, ask)

    return make


@kind(4)
def embeddings(_: Path) -> Make:
    originals: list[Entries] = [
        {"emb_params": ("F32", (3, 768))},
        {"<cat-toy>": ("F16", (768,))},
        {"clip_l": ("F32", (2, 768)), "clip_g": ("F32", (2, 1280))},
    ]

    def make(chance: Random, folder: Path) -> Asks:
        path = folder / "some.safetensors"
        size = weights(chance, path, chance.choice(originals), {"a": "b"})
        return asks(chance, path, size, lambda: textual_inversion.load(path))

    return make


@kind(2)
def controlnets(_: Path) -> Make:
    config = ControlNetConfig.read(
        {
            "block_out_channels": (32, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "conditioning_embedding_out_channels": (16, 32),
        }
    )
    network = empty_network(ControlNet, config)
    ours = entries_of(network)
    theirs = {name: ("F16", tuple(t.shape)) for name, t in controlnet.to_original(network).items()}
    told = {"_class_name": "ControlNetModel", **config.model_dump(mode="json")}

    def make(chance: Random, folder: Path) -> Asks:
        path = folder / "diffusion_pytorch_model.safetensors"
        size = weights(chance, path, chance.choice((ours, theirs)), {})
        if chance.random() < 0.5:
            text = json_changed(chance, told, often=0.8)
            (folder / "config.json").write_bytes(text)
            size += len(text)
        where = chance.choice((path, path, folder))
        return asks(chance, where, size, lambda: controlnet.load(where))

    return make
