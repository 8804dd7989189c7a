"""Networks without weights, to be filled from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from undust.errors import UndustError
from undust.networks.config import NetworkConfig

MAX_TENSORS = 10_000  # tensors of a network; Stable Diffusion XL's U-Net has fewer than 2,000
RANDOM = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, Tensor.normal_)
N = TypeVar("N", bound=nn.Module)
K = TypeVar("K", bound=NetworkConfig)


def empty_network(build: Callable[[K], N], config: K) -> N:
    """A network on the meta device: its parameters have names and shapes, and no memory.

    Raises UndustError for a configuration with more than `MAX_TENSORS` tensors.
    """
    with torch.device("meta"), _WithoutInit():
        return build(config)


class _WithoutInit(TorchFunctionMode):
    """Skips random initialisation, since weights of a file replace it, and limits the size.

    On the meta device the initialisation would only take time, most of it for the import of torch's
    compiler. A damaged configuration may describe a network that is never finished.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            self.made += 1
            if self.made > MAX_TENSORS:
                raise UndustError(
                    f"the configuration describes a network of over {MAX_TENSORS:,} tensors"
                )
        if func in RANDOM:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
