"""A model of films: its three parts, and what a picture comes to as their condition."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.adapters.offload import Offload
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import prediction_on
from undust.engines import probe, registry
from undust.errors import UndustError
from undust.formats import locate
from undust.formats.files import read_whole
from undust.formats.known_hashes import known_hash
from undust.formats.original.video import read_video_file
from undust.formats.video_folder import VideoComponents, read_video_folder, video_hash
from undust.latent.denoiser import PlacedNetwork
from undust.latent.first_stage import FirstStage
from undust.latent.model import LARGE_MODEL
from undust.networks import dtype_and_device
from undust.networks.conditioning import Conditioning
from undust.networks.stored import WIDE, computes_in, keep_stored

ENGINES = (registry.AUTO, "torch", "cpu", "gpu", "int8")  # those that films are computed with


@dataclass(eq=False)
class VideoModel(VideoComponents):
    """First stage, image encoder and denoiser of a model of films.

    name, hash, path, execution_device, engine and low_memory: as of `LatentModel`.
    """

    name: str = ""
    hash: str = ""
    path: str = ""
    execution_device: torch.device | None = None
    engine: str = "torch"
    low_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        networks = self.unet, self.autoencoder
        prepared = registry.chosen(self.engine, networks, self.device)
        self.engine = prepared.name
        self._offload = Offload(self.execution_device)
        self.first_stage = FirstStage(prepared(self.autoencoder), self._offload)
        self.denoise: NetworkDenoiser[Conditioning] = NetworkDenoiser(
            PlacedNetwork(prepared(self.unet), self._offload),
            self.process,
            prediction_on(self.process, self.prediction),
        )

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        engine: str = registry.AUTO,
        low_memory: bool | None = None,
    ) -> Self:
        """The model of films at that path, or org/name on the hub; options as of `undust.load`.

        A diffusers folder, or a single file in the layout of Stable Video Diffusion's, whose
        configuration has 25 frames if its name has "xt" between other words, else 14.
        """
        if engine not in ENGINES:
            raise UndustError(
                f"engine: {engine} is not for films; {', '.join(ENGINES)} are possible"
            )
        place = dtype_and_device.device(device)
        if dtype == registry.AUTO:
            dtype = probe.fastest_dtype() if place.type == "cpu" else "bf16"
        folder, dtype = locate.find(name_or_path), dtype_and_device.precision(dtype or "fp32")
        if folder.is_dir():
            name, read = folder.resolve().name, read_video_folder
            hashed = partial(video_hash, folder)
        else:
            name, read, hashed = folder.stem, read_video_file, partial(known_hash, folder)
        if low_memory is None:
            low_memory = locate.weights_size(folder) >= LARGE_MODEL
        low_memory = low_memory and dtype == WIDE

        def opened() -> tuple[VideoComponents, str]:
            with ThreadPoolExecutor(1) as pool:  # hashing takes as long as reading
                digits = pool.submit(hashed)
                return read(folder, None if low_memory else dtype), digits.result()[:10]

        parts, found = read_whole(folder, opened)
        for network in parts.networks.values():
            if low_memory:
                keep_stored(network)
            else:
                _align(network)
            network.eval().requires_grad_(False)
        return cls(
            **vars(parts),
            name=name,
            hash=found,
            path=str(name_or_path),
            execution_device=place,
            engine=engine,
            low_memory=low_memory,
        )

    @property
    def device(self) -> torch.device:
        """The device that its networks run on."""
        return self.execution_device or next(self.unet.parameters()).device

    @property
    def precision(self) -> str:
        """The precision of its weights by name, such as "float32"."""
        return str(computes_in(self.unet)).removeprefix("torch.")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the films that the model was trained on, pixels.

        Stable Video Diffusion's configuration does not say it: 1024×576.
        """
        sample = self.unet.config.sample_size or 96
        factor = self.autoencoder.downsampling_factor
        if sample == 96 and factor == 8:
            return 1024, 576
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return width * factor, height * factor

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a frame; UndustError if the size is not divisible."""
        shape = self.first_stage.latent_shape(width, height)
        multiple = self.unet.config.side_multiple
        if shape[1] % multiple or shape[2] % multiple:
            sides = self.autoencoder.downsampling_factor * multiple
            raise UndustError(f"size: {width}x{height} is not divisible by {sides}")
        return shape

    def embed(self, pictures: Tensor) -> Tensor:
        """The embeddings [B, 1, D] of pictures [B, 3, H, W] in [-1, 1]."""
        side = self.image_encoder.shape.image_size
        small = shrunk(pictures.to(self.device).float(), side)
        small = small.to(computes_in(self.image_encoder))
        encode = partial(self.image_encoder.pooled, small)
        return self._offload.run(self.image_encoder, encode)[:, None].float()

    def condition(
        self, pictures: Tensor, noise: Tensor, numbers: Tensor, frames: int
    ) -> Conditioning:
        """The condition of films by their first frames.

        pictures: [B, 3, H, W] in [-1, 1]; noise: unit normal like them; numbers: [B, 3], frames a
        second less 1, motion bucket, deviation of the noise; frames: of a film. The latent of the
        picture under noise is not scaled, as published.
        """
        scale, shift = self.autoencoder.scale(pictures)
        noisy = pictures + numbers[:, 2].to(pictures).reshape(-1, 1, 1, 1) * noise
        latent = self.first_stage.encode(noisy).mean / scale + shift
        return Conditioning(
            len(pictures),
            text=self.embed(pictures),
            size_ids=numbers,
            extra_channels=latent[:, None].expand(-1, frames, -1, -1, -1),
        )

    def decode(self, latents: Tensor, together: int) -> Tensor:
        """Latents [F, C, h, w] → frames [F, 3, H, W] in float32; together: frames at a time."""
        return torch.cat([self.first_stage.decode(part) for part in latents.split(together)])


def _align(network: nn.Module) -> None:
    """Copies weights that are mapped from a file at other places than multiples of 64 bytes.

    Products round by the place too, and a folder and a single file have other places.
    """
    for parameter in network.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def unconditional(cond: Conditioning) -> Conditioning:
    """The condition that guidance leads away from: zeros for the picture's embedding and latent."""
    assert cond.text is not None
    assert cond.extra_channels is not None
    nothing = torch.zeros_like(cond.text), torch.zeros_like(cond.extra_channels)
    return replace(cond, text=nothing[0], extra_channels=nothing[1])


def shrunk(x: Tensor, side: int) -> Tensor:
    """Pictures [B, 3, H, W] as [B, 3, side, side], for the image encoder.

    A Gaussian blur of deviation (factor − 1)/2, at least 0.001, for each direction, then bicubic
    interpolation with aligned corners: the antialiased resizing that the model was trained with.
    """
    for dimension in (2, 3):
        deviation = max((x.shape[dimension] / side - 1) / 2, 1e-3)
        count = max(int(4 * deviation), 3) // 2 * 2 + 1
        places = torch.arange(count, dtype=x.dtype, device=x.device) - count // 2
        weights = (-(places**2) / (2 * deviation**2)).exp()
        shape = [1, 1, 1, 1]
        shape[dimension] = count
        kernel = (weights / weights.sum()).reshape(shape).expand(x.shape[1], -1, -1, -1)
        reach = [0, 0, 0, 0]
        reach[6 - 2 * dimension : 8 - 2 * dimension] = [count // 2] * 2
        reflects = count // 2 < x.shape[dimension]
        padded = F.pad(x, reach, "reflect" if reflects else "replicate")
        x = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.interpolate(x, (side, side), mode="bicubic", align_corners=True)


def frames_that_fit(width: int, height: int) -> int:
    """How many frames of that size are decoded together by default: those of 2²¹ pixels."""
    return max(1, math.floor(2**21 / (width * height)))
