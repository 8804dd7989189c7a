"""A model: its three parts, and caches of the adapters that requests use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from undust.adapters.applied_loras import LoraSet
from undust.adapters.offload import Lock, Offload
from undust.adapters.token_merging import MergingNetworks
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import prediction_on
from undust.engines import probe, registry
from undust.errors import UndustError, naming
from undust.formats import controlnet, locate, model_folder, standalone_vae, textual_inversion
from undust.formats.components import Components
from undust.formats.files import read_whole
from undust.formats.known_hashes import known_hash
from undust.formats.lora.file import Lora, load_lora
from undust.formats.original.model import load_single_file
from undust.latent import finite
from undust.latent.conditioner import Conditioner, ConditionInputs
from undust.latent.denoiser import PlacedNetwork
from undust.latent.first_stage import FirstStage
from undust.latent.references import resolved_weights
from undust.networks import dtype_and_device
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.controlnet import ControlNet, check_fits
from undust.networks.stored import WIDE, keep_stored
from undust.networks.text_encoder import TextEncoder
from undust.recipe.files import WeightsRef
from undust.recipe.inputs import Embedding, LoRA

LARGE_MODEL = 2**30  # bytes of files from which on weights stay in 16 bits by default


@dataclass(eq=False)
class LatentModel(Components):
    """First stage, conditioner and denoiser of one model, and caches of adapters.

    hash: of its weights without `vae`; vae: a first stage that replaces the model's own; path:
    where it was loaded from, "" for a built-in model; merge_loras: LoRAs are merged into
    copies of the weights, or else added to the outputs of modules, where another LoRA weight costs
    nothing; execution_device: each network is moved there when it is called and back when memory
    runs out, None to leave them in place; engine: how denoiser and first stage are computed, by
    name; low_memory: large weights stay in their file's 16 bits. Several threads may use it.
    """

    name: str = ""
    hash: str = ""
    path: str = ""
    vae: WeightsRef | None = None
    merge_loras: bool = True
    execution_device: torch.device | None = None
    engine: str = "torch"
    low_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_engine()
        self._base = self  # without any adapters
        self._change: Callable[[DenoiserNetwork], DenoiserNetwork] | None = None
        self._lock = Lock()  # of the caches
        self._others: dict[str, Self] = {}
        self._controls: dict[WeightsRef, ControlNet] = {}
        self._loras: dict[str, Lora] = {}
        self._merging = MergingNetworks()
        self._adapted: Mapping[str, nn.Module] = {}  # kept while a request uses it
        self._lora_names: list[str] = []
        self._use(Offload(self.execution_device))

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        vae: str | Path | None = None,
        merge_loras: bool = True,
        engine: str = "torch",
        low_memory: bool | None = False,
    ) -> Self:
        """The model of that name or at that path; see `undust.load`."""
        place = dtype_and_device.device(device)
        if dtype == registry.AUTO:
            dtype = probe.fastest_dtype() if place.type == "cpu" else "bf16"
        folder, dtype = locate.find(name_or_path), dtype_and_device.precision(dtype or "fp32")
        if not folder.is_dir():
            single = partial(load_single_file, first_stage=vae is None)
            name, read, hashed = folder.stem, single, known_hash
        else:
            name, read = folder.resolve().name, model_folder.read
            hashed = model_folder.weights_hash

        if low_memory is None:
            low_memory = locate.weights_size(folder) >= LARGE_MODEL
        low_memory = low_memory and dtype == WIDE

        def opened() -> tuple[Components, str]:
            # Hashing gigabytes takes as long as reading them.
            with ThreadPoolExecutor(1) as pool:
                digits = pool.submit(hashed, folder)
                kept = None if low_memory else dtype
                return read(folder, kept), digits.result()[:10]

        parts, found = read_whole(folder, opened)  # a run may be publishing it
        if low_memory:
            for network in parts.networks.values():
                keep_stored(network)
        instead = None
        if vae is not None:
            instead = resolved_weights(WeightsRef(path=str(standalone_vae.locate(Path(vae)))))
            parts.autoencoder = standalone_vae.replacement(Path(instead.path), parts)
        for network in parts.networks.values():
            network.eval().requires_grad_(False)
        return cls(
            **vars(parts),
            name=name,
            hash=found,
            path="" if folder.parent == locate.BUILT_IN else str(name_or_path),
            vae=instead,
            merge_loras=merge_loras,
            execution_device=place,
            engine=engine,
            low_memory=low_memory,
        )

    def with_engine(self, name: str) -> Self:
        """The same model, computed by another engine, without adapters; it shares all weights.

        Raises UndustError for an unknown engine.
        """
        other = copy.copy(self._base)
        other._base, other.engine = other, name
        other._others, other._controls = {}, {}  # these are computed by the engine too
        other._choose_engine()
        other._assemble()
        return other

    def with_network(self, change: Callable[[DenoiserNetwork], DenoiserNetwork]) -> Self:
        """The same model with another network in its denoiser, without adapters.

        change: the network, with the adapters of a request, to a copy of it, such as
        `capture.recording` or `ablation.changed`. The model itself stays as it is; they share all
        weights.
        """
        other = copy.copy(self._base)
        other._base, other._change = other, change
        other._assemble()
        return other

    def _choose_engine(self) -> None:
        computed = (self.unet, self.autoencoder)
        self._prepared = registry.chosen(self.engine, computed, self.device)
        self.engine = self._prepared.name

    def _use(self, offload: Offload) -> None:
        """Sets the offload that all networks run in."""
        self._offload = offload
        own = {name: network for name, network in self.networks.items() if name != "vae"}
        self._lora_set = LoraSet(own, merge=self.merge_loras, before=offload.clear)
        self._assemble()

    def _assemble(self) -> None:
        """Builds first stage, conditioner and denoiser from the networks."""
        offload = self._offload
        self.first_stage = FirstStage(self._prepared(self.autoencoder), offload)
        self.conditioner = Conditioner(self, offload)
        prediction = prediction_on(self.process, self.prediction)
        explain = partial(finite.explain, self.networks, self._lora_names)
        # Before the engine, which copies the layers that it replaces.
        unet = self.unet if self._change is None else self._change(self.unet)
        self.denoise: NetworkDenoiser[Conditioning] = NetworkDenoiser(
            PlacedNetwork(
                self._prepared(unet),
                offload,
                explain,
                self_conditioned=self.self_conditioned,
            ),
            self.process,
            prediction,
        )

    @property
    def device(self) -> torch.device:
        """The device that its networks run on."""
        return self.execution_device or next(self.unet.parameters()).device

    @property
    def precision(self) -> str:
        """The precision of its weights by name, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a picture; UndustError if the size is not divisible."""
        return self.first_stage.latent_shape(width, height)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → pictures [B, 3, H, W], about in [-1, 1]."""
        return self.first_stage.decode(latents)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] → the means of their latents [B, C, h, w]."""
        return self.first_stage.encode(pictures).mean

    def condition(self, prompts: Sequence[str | None], *, clip_skip: int = 0) -> Conditioning:
        """The conditioning of prompts, the other inputs at their defaults; None is no prompt."""
        fields = {"clip_skip": [clip_skip] * len(prompts)}
        return self.conditioner(ConditionInputs(prompts, fields))

    def with_adapters(
        self,
        loras: Sequence[LoRA] = (),
        embeddings: Sequence[Embedding] = (),
        *,
        token_merging: float = 0.0,
    ) -> Self:
        """The model with these LoRAs, embeddings and share of merged tokens, and no others.

        It shares all weights that no LoRA changes. Raises UndustError for files whose content has
        changed, for files of another kind of model, and where no tokens can be merged.
        """
        base = self._base
        if not loras and not embeddings and not token_merging:
            return base
        loaded = [(base._lora(each), each.weight) for each in loras]
        networks = base._lora_set.applied(loaded)
        learnt = [
            (each, textual_inversion.load(Path(resolved_weights(each).path), each.word))
            for each in embeddings
        ]
        other = copy.copy(base)
        other.unet = base._merging(cast(DenoiserNetwork, networks["unet"]), token_merging)
        other.texts = tuple(
            replace(
                words,
                encoder=cast(TextEncoder, networks[words.name]),
                embeddings={each.word: _vectors(each, found, words.name) for each, found in learnt},
            )
            for words in base.texts
        )
        other._adapted, other._lora_names = networks, [lora.name for lora, _ in loaded]
        other._assemble()
        return other

    def control(self, given: WeightsRef, /) -> ControlNet:
        """A ControlNet in this model's dtype, loaded once.

        Raises UndustError for a file whose content has changed or of another kind of model.
        """
        known = WeightsRef(path=given.path, hash=given.hash)
        with self._lock:
            if known not in self._controls:
                kept = None if self.low_memory else self.dtype
                network = controlnet.load(Path(resolved_weights(known).path), kept)
                if self.low_memory:
                    keep_stored(network)
                with naming(Path(known.path)):
                    check_fits(network, self.unet)
                self._controls[known] = self._prepared(network.eval().requires_grad_(False))
            return self._controls[known]

    def load_other(self, name_or_path: str, /) -> Self:
        """Another model in this one's dtype and on its device, loaded once."""
        with self._lock:
            if name_or_path not in self._others:
                # It may gain nothing by this model's engine.
                engine = self.engine if self.engine == "torch" else registry.AUTO
                with torch.inference_mode(False):  # tensors of inference could not be changed later
                    other = self.load(
                        name_or_path,
                        dtype=self.dtype,
                        device=self.device,
                        engine=engine,
                        low_memory=self.low_memory,
                    )
                other._use(self._offload)  # so that each makes room for the other
                self._others[name_or_path] = other
            return self._others[name_or_path]

    def _lora(self, given: WeightsRef) -> Lora:
        ref = resolved_weights(given)
        with self._lock:
            if ref.hash not in self._loras:
                networks = {name: net for name, net in self.networks.items() if name != "vae"}
                self._loras[ref.hash] = load_lora(Path(ref.path), networks)
            return self._loras[ref.hash]


def _vectors(given: Embedding, found: Mapping[str, Tensor], name: str) -> Tensor:
    """The vectors of an embedding for one of the text encoders."""
    encoder = textual_inversion.PARTS[name]
    vectors = found.get(encoder if encoder in found else "")
    if vectors is None:
        raise UndustError(
            f"{given.path}: the embedding '{given.word}' has no vectors for the model's {name}; it "
            f"has some for {', '.join(sorted(found))}"
        )
    return vectors
