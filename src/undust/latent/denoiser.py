"""The denoiser's network, where it runs."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from undust.adapters.control import summed
from undust.adapters.offload import Offload
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.unet import UNet

NONE = CallOptions()


class PlacedUNet:
    """A U-Net as the network of a `NetworkDenoiser`, on a device and in its weights' precision."""

    def __init__(self, unet: UNet, offload: Offload | None = None) -> None:
        """offload: brings the U-Net and ControlNets to its device; None where they are there."""
        self.unet, self._offload = unet, offload or Offload(None)

    def __call__(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, options: CallOptions = NONE
    ) -> Tensor:
        """Latents [B, C, h, w] at time steps [B] → the output, like x."""
        weight = self.unet.conv_in.weight
        device = self._offload.device or weight.device
        latents, timestep = x.to(device, weight.dtype), timestep.to(device)
        cond = cond.to(device, weight.dtype)
        control = summed(
            self._offload.run(each.network, partial(each, latents, timestep, cond))
            for each in options.controls
        )
        call = partial(
            self.unet, latents, timestep, cond, perturbed=options.perturbed, control=control
        )
        return self._offload.run(self.unet, call).to(x)
