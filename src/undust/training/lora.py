"""Training a LoRA: changes of low rank of some layers of a model that exists (Hu et al. 2021)."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from undust.adapters.lora import apply_low_rank
from undust.conditioning.prompt import escape
from undust.errors import UndustError, printable
from undust.formats.files import atomic_folder
from undust.formats.lora import write
from undust.formats.lora.factors import Product
from undust.formats.lora.file import WeightDelta
from undust.formats.single_file import variant_of
from undust.networks.unet import UNet
from undust.pipeline import LatentDiffusion
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import Config
from undust.training.data import Observe
from undust.training.existing import ExistingModelConfig, ExistingModelTask, chosen_networks

# The name that diffusers' load_lora_weights finds in a folder, and kohya's keys for other programs.
FILES: Mapping[write.Keys, str] = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "kohya.safetensors",
}
ATTENTION = re.compile(r"(^|\.)(to_(q|k|v|out\.0)|self_attn\.(q|k|v|out)_proj)$")
# A variant → kohya's name for the base model.
VERSIONS = {
    **dict.fromkeys(("sd1", "sd1-inpainting"), "sd_v1"),
    **dict.fromkeys(("sd2", "sd2-inpainting", "x4-upscaler"), "sd_v2"),
    "sd2-v": "sd_v2_v",
    **dict.fromkeys(("sdxl", "sdxl-inpainting", "sdxl-refiner"), "sdxl_base_v1-0"),
}
GROUPS = ("attention", "all-linear", "convolutions")
Layer = nn.Linear | nn.Conv2d


class LowRankConfig(Config):
    """The low-rank changes: W + (alpha/rank)·B·A (Hu et al. 2021, eq. 3 and section 4.1)."""

    rank: int = Field(default=8, gt=0, le=4096, description="rank of each change")
    alpha: float | None = Field(
        default=None, gt=0, le=1e6, description="scale of a change, times rank; left out: the rank"
    )
    targets: tuple[str, ...] = Field(
        default=("attention",),
        min_length=1,
        description="layers that are changed: attention (its projections), all-linear, "
        "convolutions, or ends of their names such as to_q or ff.net.2",
    )

    @property
    def scale(self) -> float:
        """alpha/rank, with alpha as a file has it, in single precision."""
        return float(torch.tensor(self.alpha or self.rank, dtype=torch.float32)) / self.rank

    def layers(self, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Layer]]:
        """The layers of each network that are changed, by their names.

        Raises UndustError for a target without layers, for a network without any, and for a rank
        that is larger than a layer's.
        """
        found = {name: self._layers_of(name, network) for name, network in networks.items()}
        for target in self.targets:
            every = ((name, layer) for own in found.values() for name, layer in own.items())
            if not any(_is_target(name, layer, target) for name, layer in every):
                raise _no_layer(target, networks)
        return found

    def _layers_of(self, name: str, network: nn.Module) -> dict[str, Layer]:
        known = {each: layer for each, layer in network.named_modules() if isinstance(layer, Layer)}
        chosen = {
            each: layer
            for each, layer in known.items()
            if any(_is_target(each, layer, target) for target in self.targets)
        }
        if not chosen:
            raise _no_layer(", ".join(self.targets), {name: network})
        for each, layer in chosen.items():
            rows, columns = len(layer.weight), layer.weight[0].numel()
            if self.rank > min(rows, columns):
                raise UndustError(
                    f"lora.rank is {self.rank}, but {name}.{each} is a matrix of {rows} × {columns}"
                    f", whose rank is at most {min(rows, columns)}"
                )
        return chosen

    def changes(self, networks: Mapping[str, nn.Module], seed: int) -> dict[str, nn.Module]:
        """The changes of each network, added to its layers. Raises UndustError as `layers`."""
        found = self.layers(networks)
        torch.manual_seed(seed)
        # A module's name may have no dots.
        return {
            name: nn.ModuleDict(
                {
                    each.replace(".", "/"): LowRankChange(layer, self.rank, self.scale)
                    for each, layer in own.items()
                }
            )
            for name, own in found.items()
        }


class LoraConfig(ExistingModelConfig):
    """Trains a LoRA of a model that exists, whose own weights stay."""

    kind: Literal["lora"] = Field(description="what is trained")
    train: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="networks that it changes, such as unet, text_encoder, text_encoder_2; left "
        "out: the U-Net alone",
    )
    lora: LowRankConfig = LowRankConfig()

    def task(self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe) -> LoraTask:
        """The training of the LoRA."""
        return LoraTask(self, out, resumed, observe)


class LowRankChange(nn.Module):
    """The factors of one layer's change, whose product is 0 at first.

    A [rank, in·kernel] is uniform as a layer's weight, B [out, rank] is 0 (Hu et al. 2021, 4.1).
    """

    def __init__(self, layer: Layer, rank: int, scale: float) -> None:
        super().__init__()
        self.scale, self.added = scale, True
        columns = layer.weight[0].numel()
        bound = 1 / math.sqrt(columns)
        self.down = nn.Parameter(torch.empty(rank, columns).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(len(layer.weight), rank))
        layer.register_forward_hook(self._added)

    def _added(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The layer's output with the change, as `adapters.applied_loras` adds it."""
        if not self.added:
            return output
        return output + apply_low_rank(layer, inputs[0], self.scale * self.up, self.down)

    def change(self) -> WeightDelta:
        """As a file has it."""
        return WeightDelta(Product(self.up.detach().cpu(), self.down.detach().cpu()), self.scale)


class LoraTask(ExistingModelTask):
    """The factors of a LoRA are trained; the networks that they change stay as they are."""

    def __init__(
        self,
        config: LoraConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. Raises UndustError as `LowRankConfig.layers` does."""
        model = config.loaded()
        check_takes_lora(model, config)
        networks = chosen_networks(model, config.train)
        modules = config.lora.changes(networks, config.seed)
        finished = not any(text.name in modules for text in model.texts)
        super().__init__(
            config, out, resumed, observe, model=model, modules=modules, text_is_finished=finished
        )
        self._lora = config.lora

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """As `write_lora`."""
        write_lora(folder, self.modules, self.model, self._lora, self.config)

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that generates an image with the LoRA, and the other file's use."""
        return lora_use(model, self.config, self.text.example if self.text else None)


def check_takes_lora(model: LatentDiffusion, config: ExistingModelConfig) -> None:
    """Raises UndustError for a model whose denoiser no LoRA is for."""
    if not isinstance(model.unet, UNet):
        raise UndustError(
            f"model: {config.model} has no U-Net with text, and there are no other LoRAs yet"
        )


@contextmanager
def without_changes(modules: nn.Module) -> Generator[None]:
    """Within it the networks compute as if the changes among the modules were not there."""
    changes = [each for each in modules.modules() if isinstance(each, LowRankChange)]
    for each in changes:
        each.added = False
    try:
        yield
    finally:
        for each in changes:
            each.added = True


def write_lora(
    folder: Path,
    modules: Mapping[str, nn.Module] | nn.ModuleDict,
    model: LatentDiffusion,
    lora: LowRankConfig,
    config: ExistingModelConfig,
) -> None:
    """Writes a LoRA as a folder of two files, under diffusers' keys and under kohya's.

    modules: the changes of each network of the model.
    """
    changes = {name: dict(_changes(own)) for name, own in modules.items()}
    with atomic_folder(folder, replace=True) as building:
        for keys, file in FILES.items():
            about = _metadata(keys, model, lora, config)
            write.save(building / file, changes, model.networks, keys, about)


def lora_use(
    folder: Path, config: ExistingModelConfig, prompt: str | None, options: Sequence[str] = ()
) -> str:
    """A command that generates an image with the LoRA in a folder, and the other file's use."""
    command = ["undust", "generate", *([] if prompt is None else [escape(prompt)])]
    command += ["--model", str(config.model), "--lora", str(folder / FILES["diffusers"]), *options]
    return (
        f"generate with it: {shlex.join(command)}; diffusers: "
        f"load_lora_weights({str(folder)!r}); {FILES['kohya']} is for ComfyUI and others"
    )


def _metadata(
    keys: write.Keys, model: LatentDiffusion, lora: LowRankConfig, config: ExistingModelConfig
) -> dict[str, str]:
    """The base model, rank, alpha and recipe; under kohya's keys also in kohya's words."""
    rank, alpha = lora.rank, lora.alpha or lora.rank
    recipe = config.model_dump(mode="json", exclude_unset=True)
    recipe["data"]["folder"] = config.data.folder.name  # files are passed on
    about = {
        "base_model": str(config.model),
        "base_model_hash": model.hash,
        "rank": rank,
        "alpha": alpha,
        "recipe": recipe,
    }
    found = {"undust": json.dumps(about)}
    if keys == "kohya":
        found |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)}
        found |= {"ss_network_alpha": f"{alpha:g}"}
        with suppress(UndustError):  # of a model that was never published
            found |= {"ss_base_model_version": VERSIONS[variant_of(model).name]}
    return found


def _is_target(name: str, layer: nn.Module, target: str) -> bool:
    match target:
        case "attention":
            return bool(ATTENTION.search(name))
        case "all-linear":
            return isinstance(layer, nn.Linear)
        case "convolutions":
            return isinstance(layer, nn.Conv2d)
        case _:
            return name == target or name.endswith(f".{target}")


def _no_layer(targets: str, networks: Mapping[str, nn.Module]) -> UndustError:
    every = (each for network in networks.values() for each in network.named_modules())
    ends = dict.fromkeys(_end(name) for name, layer in every if isinstance(layer, Layer))
    return UndustError(
        f"lora.targets: {printable(targets)} match nothing in {' or '.join(networks)}; it has "
        f"{', '.join(ends)}; known groups: {', '.join(GROUPS)}"
    )


def _end(name: str) -> str:
    """The end of a layer's name that tells its kind: to_q, net.2."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]


def _changes(changes: nn.Module) -> Iterator[tuple[str, WeightDelta]]:
    for name, change in changes.named_children():
        assert isinstance(change, LowRankChange)
        yield name.replace("/", "."), change.change()
