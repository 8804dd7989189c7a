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
N = TypeVar("N", bound=nn.Module)
K = TypeVar("K", bound=NetworkConfig)


def empty_network(build: Callable[[K], N], config: K) -> N:
    """A network without weights: its parameters have names and shapes, and no memory.

    Raises UndustError for a configuration of more tensors than any file has.
    """
    with torch.device("meta"), _WithoutInit():
        return build(config)


class _WithoutInit(TorchFunctionMode):
    """Within it no random weights are drawn: those of the file replace them at once.

    On the meta device drawing them would only cost time, most of it the import of torch's compiler.
    What a damaged configuration asks for is not built to the end: there may be no end.
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
                    f"the configuration is of a network of over {MAX_TENSORS:,} tensors"
                )
        if func in (nn.init.normal_, Tensor.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
