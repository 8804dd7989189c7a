"""The denoiser's network on its device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from undust.adapters.control import summed
from undust.adapters.offload import Offload
from undust.errors import UndustError
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.unet import UNet

NONE = CallOptions()


class PlacedUNet:
    """A U-Net as the network of a `NetworkDenoiser`, on a device and in its weights' precision."""

    def __init__(
        self,
        unet: UNet,
        offload: Offload | None = None,
        explain: Callable[..., UndustError] | None = None,
    ) -> None:
        """offload: moves the U-Net and ControlNets to its device; None to leave them in place.

        explain: makes the error for an output with NaN or infinity, as `finite.explain`; None to
        return such an output.
        """
        self.unet, self._offload, self._explain = unet, offload or Offload(None), explain

    def __call__(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, options: CallOptions = NONE
    ) -> Tensor:
        """Latents [B, C, h, w] at time steps [B] → the output, like x.

        Raises the UndustError of `explain` for NaN and infinity.
        """
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
        output = self._offload.run(self.unet, call).to(x)
        if self._explain is None or output.isfinite().all():
            return output
        unchecked = PlacedUNet(self.unet, self._offload)
        raise self._explain(x, cond, options, partial(unchecked, x, timestep, cond))
