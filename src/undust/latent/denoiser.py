"""The denoiser's network on its device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from undust.adapters.control import summed
from undust.adapters.offload import Offload
from undust.errors import UndustError
from undust.networks import deep_cache
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.stored import computes_in

NONE = CallOptions()


class PlacedNetwork:
    """The network of a `NetworkDenoiser`, on a device and in its precision."""

    def __init__(
        self,
        network: DenoiserNetwork,
        offload: Offload | None = None,
        explain: Callable[..., UndustError] | None = None,
        *,
        self_conditioned: bool = False,
    ) -> None:
        """offload: moves the network and ControlNets to its device; None to leave them in place.

        explain: makes the error for an output with NaN or infinity, as `finite.explain`; None to
        return such an output; self_conditioned: whether the network takes an earlier estimate,
        which is 0 where there is none.
        """
        self.network, self._offload, self._explain = network, offload or Offload(None), explain
        self.self_conditioned, self._dtype = self_conditioned, computes_in(network)
        self._conditions: WeakKeyDictionary[Conditioning, tuple[torch.device, Conditioning]] = (
            WeakKeyDictionary()
        )

    def __call__(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, options: CallOptions = NONE
    ) -> Tensor:
        """Latents [B, C, h, w] at time steps [B] → the output, like x.

        Raises the UndustError of `explain` for NaN and infinity.
        """
        device = self._offload.device or next(self.network.parameters()).device
        latents, timestep = x.to(device, self._dtype), timestep.to(device)
        if self.self_conditioned and cond.estimate is None:
            cond = cond.with_estimate(torch.zeros_like(x))
        cond = self._moved(cond, device)
        output = self._by_cache(latents, timestep, cond, options).to(x)
        if self._explain is None or output.isfinite().all():
            return output
        unchecked = PlacedNetwork(
            self.network, self._offload, self_conditioned=self.self_conditioned
        )
        raise self._explain(x, cond, options, partial(unchecked, x, timestep, cond))

    def _moved(self, cond: Conditioning, device: torch.device) -> Conditioning:
        """A condition on the device, the same one in all steps of a run: it is copied once."""
        known = self._conditions.get(cond)
        if known is None or known[0] != device:
            known = self._conditions[cond] = device, cond.to(device, self._dtype)
        return known[1]

    def _by_cache(
        self, x: Tensor, timestep: Tensor, cond: Conditioning, options: CallOptions
    ) -> Tensor:
        """The output, with the deep features that are kept.

        Entries whose features have to be computed and others are called apart, so that neither
        depends on the others.
        """
        level, key = options.sigma, options.controls
        kept = [each.kept(level, key) for each in options.deep]
        found = [each for each in kept if each is not None]
        if 0 < len(found) < len(kept):
            parts = (
                self._by_cache(x[rows], timestep[rows], cond[rows], own)
                for rows, own in options.by_cache()
            )
            return torch.cat([*parts])
        if found:
            return self._run(x, timestep, cond, options, deep=deep_cache.joined(found))
        control = summed(
            self._offload.run(each.network, partial(each, x, timestep, cond))
            for each in options.controls
        )
        if not options.deep:
            return self._run(x, timestep, cond, options, control=control)
        deep = deep_cache.DeepFeatures()
        output = self._run(x, timestep, cond, options, control=control, deep=deep)
        sizes = [each.batch for each in options.deep]
        for cache, own in zip(options.deep, deep_cache.split(deep, sizes), strict=True):
            cache.keep(own, level, key)
        return output

    def _run(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Conditioning,
        options: CallOptions,
        **given: Any,
    ) -> Tensor:
        """One call of the network."""
        call = partial(self.network, x, timestep, cond, perturbed=options.perturbed, **given)
        return self._offload.run(self.network, call)
