"""The first stage: pictures to latents and back."""

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
        """The posterior of the pictures with the indices `which` [N]."""
        return Posterior(self.mean[which], self.deviation[which])

    def sample(self, noise: Tensor) -> Tensor:
        """A sample of the latents, by unit normal noise [B,C,h,w]."""
        return self.mean + self.deviation * noise


class FirstStage:
    """Pictures [B,C,H,W] in [-1,1] to the latents that a denoiser is trained on, and back.

    channels: of the latents; downsampling_factor: pixels along a side for one latent pixel. It
    computes in the dtype of the network's weights. A picture that exceeds the range of half
    precision is computed again in float32, with a RuntimeWarning. This is decided for each picture
    alone, with a copy of the weights, so that no picture depends on others. bfloat16 has the range
    too but costs colour levels: up to 9 of 255 with random weights of Stable Diffusion's shape.
    Both directions raise UndustError for inputs that are not finite and for results that are not
    finite in float32.
    """

    def __init__(self, network: FirstStageNetwork, offload: Offload | None = None) -> None:
        """offload: moves the network to its device; None to leave it in place."""
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
        """Latents [B,C,h,w] of any dtype → pictures [B,C,H,W] in float32, about in [-1,1]."""

        def run(network: FirstStageNetwork, z: Tensor, *, streamed: bool) -> Tensor:
            return network.decode(z, streamed=streamed)

        scale, shift = self.network.scale(latents)
        return self._run(run, latents / scale + shift, "latents")

    def _run(self, run: Callable[..., Tensor], x: Tensor, name: str) -> Tensor:
        """On the device, streamed if its memory runs out."""
        whole, in_strips = (
            partial(_finite, self.network, x, partial(run, streamed=streamed), name)
            for streamed in (False, True)
        )
        return self._offload.run(self.network, whole, in_strips).to(x.device)


def _finite(
    network: FirstStageNetwork,
    x: Tensor,
    run: Callable[[FirstStageNetwork, Tensor], Tensor],
    name: str,
) -> Tensor:
    like = next(network.parameters(), x)
    if not x.isfinite().all():
        half = torch.finfo(like.dtype).bits < 32
        hint = "; the range of half precision may be too small: try float32" if half else ""
        raise UndustError(f"the first stage was given {name} with NaN or infinity{hint}")
    y = run(network, x.to(like)).float()
    lost = _nonfinite(y)
    if not lost.any():
        return y
    if damaged := damage("the first stage", network):
        raise damaged
    if torch.finfo(like.dtype).bits < 32:
        precision = str(like.dtype).removeprefix("torch.")
        warnings.warn(
            f"the first stage exceeds the range of {precision}; "
            "pictures concerned are computed again in float32",
            RuntimeWarning,
            stacklevel=3,
        )
        wide = copy.deepcopy(network).float()
        y[lost] = run(wide, x[lost].to(like.device, torch.float32))
    if _nonfinite(y).any():
        raise UndustError(
            "the first stage gives NaN or infinity in float32 "
            f"for {name} of magnitudes up to {x.abs().max():.3g}"
        )
    return y


def _nonfinite(y: Tensor) -> Tensor:
    """Whether each picture of a batch is not finite [B]."""
    return ~y.isfinite().flatten(1).all(1)
