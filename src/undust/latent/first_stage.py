"""The first stage: between pictures and latents."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from undust.adapters.offload import Offload
from undust.errors import UndustError
from undust.latent.finite import damage
from undust.networks.base import FirstStageNetwork


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over scaled latents: mean and standard deviation, both [B,C,h,w]."""

    mean: Tensor
    deviation: Tensor

    def __getitem__(self, which: Tensor) -> Posterior:
        """Of the pictures `which` [N]."""
        return Posterior(self.mean[which], self.deviation[which])

    def sample(self, noise: Tensor) -> Tensor:
        """The latents that unit normal noise [B,C,h,w] picks."""
        return self.mean + self.deviation * noise


class FirstStage:
    """Pictures [B,C,H,W] in [-1,1] to the latents that a denoiser is trained on, and back.

    channels: of the latents; downsampling_factor: pixels along a side for one latent pixel. It runs
    in the precision of the network's weights. A picture that leaves the range of half precision is
    run again in float32, and a RuntimeWarning says so. That is decided for each picture by itself,
    with a copy of the weights, so that none depends on those beside or before it. bfloat16 would
    have the range too but costs levels of colour: up to 9 of 255 with random weights of Stable
    Diffusion's shape. Both directions raise UndustError for inputs that are not finite, and for
    results that are not in float32.
    """

    def __init__(self, network: FirstStageNetwork, offload: Offload | None = None) -> None:
        """offload: brings the network to its device; None where it is there."""
        self.network, self._offload = network, offload or Offload(None)
        self.channels = network.latent_channels
        self.downsampling_factor = network.downsampling_factor

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture; UndustError if the size is not divisible."""
        factor = self.downsampling_factor
        if width % factor or height % factor or min(width, height) < factor:
            fits = "x".join(str(max(1, round(side / factor)) * factor) for side in (width, height))
            raise UndustError(
                f"size: {width}x{height} is not divisible by {factor}; {fits} would be"
            )
        return self.channels, height // factor, width // factor

    def encode(self, pictures: Tensor) -> Posterior:
        """Pictures [B,C,H,W] in [-1,1] → the posterior over their latents, in float32."""

        def run(network: FirstStageNetwork, x: Tensor, *, streamed: bool) -> Tensor:
            found = network.encode(x, streamed=streamed)
            return torch.cat([found.mean.float(), (0.5 * found.logvar.float()).exp()], 1)

        mean, deviation = self._run(run, pictures, "pictures").chunk(2, 1)
        scale, shift = self.network.scale(mean)
        return Posterior((mean - shift) * scale, deviation * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,C,h,w], in any precision → pictures [B,C,H,W] in float32, about in [-1,1]."""

        def run(network: FirstStageNetwork, z: Tensor, *, streamed: bool) -> Tensor:
            return network.decode(z, streamed=streamed)

        scale, shift = self.network.scale(latents)
        return self._run(run, latents / scale + shift, "latents")

    def _run(self, run: Callable[..., Tensor], x: Tensor, name: str) -> Tensor:
        """On the device, in less memory if it is full."""
        asked, frugal = (
            partial(_finite, self.network, x, partial(run, streamed=streamed), name)
            for streamed in (False, True)
        )
        return self._offload.run(self.network, asked, frugal).to(x.device)


def _finite(
    network: FirstStageNetwork,
    x: Tensor,
    run: Callable[[FirstStageNetwork, Tensor], Tensor],
    name: str,
) -> Tensor:
    like = next(network.parameters(), x)
    if not x.isfinite().all():
        half = torch.finfo(like.dtype).bits < 32
        range_ = "; half precision may have too small a range: float32 has it" if half else ""
        raise UndustError(f"the {name} that the first stage was given hold NaN or infinity{range_}")
    y = run(network, x.to(like)).float()
    lost = _lost(y)
    if not lost.any():
        return y
    if damaged := damage("the first stage", network):
        raise damaged
    if torch.finfo(like.dtype).bits < 32:
        precision = str(like.dtype).removeprefix("torch.")
        warnings.warn(
            f"the first stage leaves the range of {precision}; "
            "where it does, it is run again in float32",
            RuntimeWarning,
            stacklevel=3,
        )
        wide = copy.deepcopy(network).float()
        y[lost] = run(wide, x[lost].to(like.device, torch.float32))
    if _lost(y).any():
        raise UndustError(
            "the first stage gives NaN or infinity in float32: "
            f"the {name} that it was given go up to {x.abs().max():.3g}"
        )
    return y


def _lost(y: Tensor) -> Tensor:
    """Which pictures of a batch are not finite [B]."""
    return ~y.isfinite().flatten(1).all(1)
