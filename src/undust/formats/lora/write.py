"""LoRA files of low-rank changes, under the keys of diffusers and PEFT or of kohya's sd-scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from undust.formats import safetensors_file
from undust.formats.lora.factors import Product
from undust.formats.lora.file import WeightDelta
from undust.formats.lora.names import ONLY_ENCODER, Target, original_names
from undust.networks.unet import UNet

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
Keys = Literal["diffusers", "kohya"]
Changes = Mapping[str, Mapping[str, WeightDelta]]


def save(
    path: Path,
    changes: Changes,
    networks: Mapping[str, nn.Module],
    keys: Keys,
    metadata: Mapping[str, str],
) -> None:
    """Writes the changes of some networks as one file.

    changes: products of low rank, as `Lora` has them; networks: those of the model, by the names of
    its folder's parts. diffusers' keys have no place for a scale that all readers find: it is
    multiplied into lora_B. kohya's have it as alpha. Raises UndustError as `safetensors_file.save`.
    """
    named = _for_diffusers if keys == "diffusers" else _for_kohya
    tensors = dict(named(changes, networks))
    safetensors_file.save(path, tensors, {"format": "pt", **metadata})


def _for_diffusers(
    changes: Changes, networks: Mapping[str, nn.Module]
) -> Iterator[tuple[str, Tensor]]:
    for target, change, up, down in _factors(changes, networks):
        yield f"{target.part}.{target.module}.lora_A.weight", down
        yield f"{target.part}.{target.module}.lora_B.weight", change.scale * up


def _for_kohya(changes: Changes, networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    prefixes = KOHYA if "text_encoder_2" in networks else {**KOHYA, "text_encoder": ONLY_ENCODER}
    for target, change, up, down in _factors(changes, networks):
        network, name = networks[target.part], target.module
        if isinstance(network, UNet) and network.config.takes_pooled_text:
            name = original_names(network).get(name, name)  # of SDXL kohya has the original names
        key = prefixes[target.part] + name.replace(".", "_")
        yield f"{key}.lora_down.weight", down
        yield f"{key}.lora_up.weight", up
        yield f"{key}.alpha", torch.tensor(change.scale * down.shape[0])


def _factors(
    changes: Changes, networks: Mapping[str, nn.Module]
) -> Iterator[tuple[Target, WeightDelta, Tensor, Tensor]]:
    """Each change with its factors in the shapes of layers: convolutions have kernels."""
    for part, own in changes.items():
        for name, change in own.items():
            product = change.weight
            assert isinstance(product, Product)
            up, down = product.up, product.down
            module = networks[part].get_submodule(name)
            if isinstance(module, nn.Conv2d):
                down = down.unflatten(1, (module.in_channels, *module.kernel_size))
                up = up[:, :, None, None]
            yield Target(part, name), change, up, down
