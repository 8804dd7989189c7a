"""Errors for NaN and infinity that name the network they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from undust.errors import UndustError
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.stored import computes_in

NAMES = {
    "unet": "the U-Net",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
}


def damage(name: str, network: nn.Module) -> UndustError | None:
    """An error that names the first weight with NaN or infinity; None if there is none."""
    for key, weight in network.named_parameters():
        if not weight.isfinite().all():
            return UndustError(f"{name} is damaged: {key} holds NaN or infinity")
    return None


def explain(
    networks: Mapping[str, nn.Module],
    loras: Sequence[str],
    x: Tensor,
    cond: Conditioning,
    options: CallOptions,
    output: Callable[[CallOptions], Tensor],
) -> UndustError:
    """An error for NaN or infinity in `output(options)`, with the network that causes it.

    networks: by the names of a model folder's components; loras: names of the active ones; x: the
    latents that the U-Net was called with; output: the U-Net's output by the call options.
    """
    suffix = f" with the LoRA {' and '.join(loras)}" if loras else ""
    names = {name: NAMES[name] + suffix for name in networks if name in NAMES}
    if "text_encoder" not in networks:
        names["text_encoder_2"] = NAMES["text_encoder"] + suffix
    texts = [name for name in names if name != "unet"]
    if not _finite([x]):
        return UndustError(
            "the latents became NaN or infinity between two steps: a lower guidance or another "
            "sampler or schedule may help"
        )
    if not _finite(each for each in (cond.text, cond.pooled) if each is not None):
        found = (damage(names[name], networks[name]) for name in texts)
        named = " or ".join(names[name] for name in texts)
        return next(filter(None, found), None) or _overflow(named, networks[texts[0]])
    if options.controls and _finite([output(CallOptions(options.perturbed))]):
        for number, control in enumerate(options.controls, 1):
            if not _finite([output(CallOptions(options.perturbed, (control,)))]):
                name = f"ControlNet {number}"
                return damage(name, control.network) or _overflow(name, control.network)
        return UndustError("the ControlNets together give NaN or infinity: lower weights may help")
    unet = networks["unet"]
    return damage(names["unet"], unet) or _overflow(names["unet"], unet)


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _overflow(name: str, network: nn.Module) -> UndustError:
    """The error for a network whose weights are all finite."""
    dtype = computes_in(network)
    precision = str(dtype).removeprefix("torch.")
    half = torch.finfo(dtype).bits < 32
    more = "; its range may be too small: bf16 and fp32 (--dtype) have more" if half else ""
    return UndustError(f"{name} gives NaN or infinity in {precision}{more}")
