"""Between pictures and latents, in the precision asked for or, if that overflows, in float32."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.generation.finite import damage
from undust.networks.autoencoder import Autoencoder


def decode(autoencoder: Autoencoder, latents: Tensor, *, streamed: bool = False) -> Tensor:
    """Unscaled latents [B,C,h,w] → pictures [B,3,H,W] in float32, about in [-1,1].

    Latents may be on any device and in any precision, the wider the better. A picture that leaves
    the range of the weights' half precision is decoded again in float32, and a RuntimeWarning says
    so. That is decided for each picture by itself, with a copy of the weights, so that none depends
    on those beside or before it. bfloat16 would have the range too but costs levels of colour: up
    to 9 of 255 with random weights of Stable Diffusion's shape. streamed: in less memory, as
    `Autoencoder.decode` has it.
    Raises UndustError for latents that are not finite, and for pictures that are not in float32.
    """
    run = partial(Autoencoder.decode, streamed=streamed)
    return _finite(autoencoder, latents, run, "latents")


def encode(autoencoder: Autoencoder, pictures: Tensor, *, streamed: bool = False) -> Tensor:
    """Pictures [B,3,H,W] in [-1,1] → the means of their unscaled latents [B,C,h,w], float32.

    What leaves the range of half precision is encoded again and told of as `decode` does it.
    """

    def run(vae: Autoencoder, x: Tensor) -> Tensor:
        return vae.encode(x, streamed=streamed).mode()

    return _finite(autoencoder, pictures, run, "pictures")


def _finite(
    autoencoder: Autoencoder,
    x: Tensor,
    run: Callable[[Autoencoder, Tensor], Tensor],
    name: str,
) -> Tensor:
    like = autoencoder.last_layer
    if not x.isfinite().all():
        half = torch.finfo(like.dtype).bits < 32
        range_ = "; half precision may have too small a range: float32 has it" if half else ""
        raise UndustError(f"the {name} that the first stage was given hold NaN or infinity{range_}")
    y = run(autoencoder, x.to(like)).float()
    lost = _lost(y)
    if not lost.any():
        return y
    if damaged := damage("the first stage", autoencoder):
        raise damaged
    if torch.finfo(like.dtype).bits < 32:
        precision = str(like.dtype).removeprefix("torch.")
        warnings.warn(
            f"the first stage leaves the range of {precision}; "
            "where it does, it is run again in float32",
            RuntimeWarning,
            stacklevel=3,
        )
        wide = copy.deepcopy(autoencoder).float()
        y[lost] = run(wide, x[lost].to(wide.last_layer))
    if _lost(y).any():
        raise UndustError(
            "the first stage gives NaN or infinity in float32: "
            f"the {name} that it was given go up to {x.abs().max():.3g}"
        )
    return y


def _lost(y: Tensor) -> Tensor:
    """Which pictures of a batch are not finite [B]."""
    return ~y.isfinite().flatten(1).all(1)
