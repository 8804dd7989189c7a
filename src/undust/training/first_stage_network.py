"""The network of a first-stage recipe: its table, the weights it starts from, its teacher."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator

from undust.errors import UndustError
from undust.formats import standalone_vae
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.config import AutoencoderConfig, TinyConfig, VQConfig
from undust.networks.tiny import TinyAutoencoder
from undust.networks.vq import VQAutoencoder
from undust.training.configs import Place
from undust.training.derived import first_stage_at
from undust.training.sources import content_digest
from undust.training.task import TrainingConfig

TrainedNetwork = Autoencoder | VQAutoencoder | TinyAutoencoder

TABLES: dict[str, Callable[..., TrainedNetwork]] = {
    "autoencoder": Autoencoder,
    "vq": VQAutoencoder,
    "tiny": TinyAutoencoder,
}
"""The tables of a recipe that describe a network, one of which it has."""

LISTED = ", ".join(f"[{name}]" for name in TABLES)


class FirstStageNetworkConfig(TrainingConfig, ABC):
    """The keys of a first-stage recipe that determine the network."""

    autoencoder: AutoencoderConfig | None = None
    vq: VQConfig | None = None
    tiny: TinyConfig | None = None
    init: Place | None = Field(
        default=None,
        description="a first stage to start from, instead of random weights: its folder, that of "
        "its run or of a model, a file, or a model's name; its table is left out",
    )
    train: Literal["all", "decoder"] = Field(
        default="all", description="what is trained; decoder: latents and their scale stay"
    )
    teacher: Place | None = Field(
        default=None, description="the first stage that [tiny] imitates; found as init is"
    )

    @property
    def table(self) -> str:
        """The name of the network's table, if it has one."""
        return next((name for name in TABLES if getattr(self, name) is not None), "")

    def complete(self) -> Self:
        """With the places of other first stages, and the fields that follow from them.

        Raises UndustError for a first stage that is not found or does not fit.
        """
        config = super().complete()
        if self.init:
            config = config._started()
        if config.tiny:
            config = config._taught(config.tiny)
        elif config.teacher:
            raise UndustError("teacher: only a tiny first stage has one; it needs the table [tiny]")
        return config

    def new_network(self) -> TrainedNetwork:
        """The network, with weights from `init` or random ones of the seed, of which some learn."""
        torch.manual_seed(self.seed)
        if not self.init:
            return TABLES[self.table](getattr(self, self.table))
        network = cast(TrainedNetwork, standalone_vae.load(self.init))
        network.train().requires_grad_(self.train == "all")
        for part in decoding_parts(network).values():
            part.requires_grad_(True)
        return network

    def weight_digests(self) -> dict[str, str]:
        """Digests of the weights of other first stages that a run depends on."""
        places = {"init": self.init, "teacher": self.teacher}
        return {
            name: content_digest(standalone_vae.files(place))
            for name, place in places.items()
            if place
        }

    def _started(self) -> Self:
        """With the table of the first stage at `init`."""
        assert self.init
        place, network = _first_stage(self.init, "init")
        if not isinstance(network, TrainedNetwork):
            raise UndustError(f"init: {place} is a {type(network).__name__}, which is not trained")
        name = next(name for name, kind in TABLES.items() if kind is type(network))
        if self.table and getattr(self, self.table) != network.config:
            raise UndustError(f"[{self.table}] has to be left out: init = {place} has its own")
        foldable = getattr(network.config, "use_quant_conv", True) and getattr(
            network.config, "use_post_quant_conv", True
        )
        if self.train == "all" and not foldable:
            raise UndustError(
                f"init: {place} lacks quant_conv or post_quant_conv, which normalise the latents; "
                'train = "decoder" keeps its latents'
            )
        return self.model_copy(update={"init": place, name: network.config})

    def _taught(self, tiny: TinyConfig) -> Self:
        """With the place and the latent channels of the teacher."""
        if not self.teacher:
            raise UndustError("[tiny] needs a teacher, the first stage that it imitates")
        place, teacher = _first_stage(self.teacher, "teacher")
        channels = teacher.latent_channels
        levels = teacher.downsampling_factor.bit_length()
        if "latent_channels" in tiny.model_fields_set and tiny.latent_channels != channels:
            raise UndustError(
                f"tiny.latent_channels is {tiny.latent_channels}, but the teacher has {channels}: "
                "leave it out"
            )
        if len(tiny.num_decoder_blocks) != levels:
            raise UndustError(
                f"tiny.num_decoder_blocks has {len(tiny.num_decoder_blocks)} levels; the teacher's "
                f"factor {teacher.downsampling_factor} needs {levels}, in all four lists of [tiny]"
            )
        tiny = tiny.model_copy(update={"latent_channels": channels, "sample_size": self.data.size})
        return self.model_copy(update={"teacher": place, "tiny": tiny})

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        tables = [name for name in TABLES if getattr(self, name) is not None]
        if len(tables) > 1 or not (tables or self.init):
            has = " and ".join(f"[{name}]" for name in tables) or "none"
            raise ValueError(f"one of the tables {LISTED} is needed, or init; the recipe has {has}")
        if self.train == "decoder" and not self.init:
            raise ValueError('train = "decoder" needs init, the first stage whose encoder is kept')
        return self

    @model_validator(mode="after")
    def _can_be_published(self) -> Self:
        own = getattr(self, self.table, None)
        for name in ("in_channels", "out_channels"):
            if own and getattr(own, name) != 3:
                raise ValueError(f"{self.table}.{name} has to be 3: pictures are read as RGB")
        if not self.autoencoder or self.init:
            return self
        # The latents' mean and deviation are folded into these convolutions.
        for name in ("use_quant_conv", "use_post_quant_conv"):
            if not getattr(self.autoencoder, name):
                raise ValueError(f"autoencoder.{name} has to be true: it normalises the latents")
        for name in ("shift_factor", "latents_mean", "latents_std"):
            if getattr(self.autoencoder, name) is not None:
                raise ValueError(f"autoencoder.{name} has to be left out: latents are normalised")
        return self


def decoding_parts(network: FirstStageNetwork) -> dict[str, torch.nn.Module]:
    """The parts of a first stage after its latents, by name."""
    children = dict(network.named_children())
    return {name: children[name] for name in ("post_quant_conv", "decoder") if name in children}


def _first_stage(path: Path, key: str) -> tuple[Path, FirstStageNetwork]:
    """The place of a first stage, and the network there without weights; key: of the recipe."""
    place = first_stage_at(path, key)
    try:
        return place, standalone_vae.empty(place)
    except UndustError as error:
        raise UndustError(f"{key}: {error}") from error
