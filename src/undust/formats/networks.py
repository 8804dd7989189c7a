"""Networks with the weights of their folder."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from undust.errors import UndustError
from undust.formats.files import read_whole
from undust.formats.folder import load_component_weights, load_into, read_json
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig, NetworkConfig

MAX_TENSORS = 10_000  # tensors of a network; Stable Diffusion XL's U-Net has fewer than 2,000
N = TypeVar("N", bound=nn.Module)
K = TypeVar("K", bound=NetworkConfig)


def load_network(
    build: Callable[[K], N], kind: type[K], path: Path, dtype: torch.dtype | None, **known: object
) -> N:
    """A network with the weights of its folder, without first filling it with random ones.

    path: the folder, or a file in it; dtype: of the weights, None for what each is in the file; as
    `safetensors_file.load`; known: fields that are told elsewhere, whatever its config.json says.
    """
    folder = path.parent if path.is_file() else path
    network = empty_network(build, kind.read({**read_json(folder / "config.json"), **known}))
    load_into(network, load_component_weights(path, dtype), path)
    return network


def empty_network(build: Callable[[K], N], config: K) -> N:
    """A network without weights: its parameters have names and shapes, and no memory.

    Raises UndustError for a configuration of more tensors than any file has.
    """
    with torch.device("meta"), _WithoutInit():
        return build(config)


def load_autoencoder(
    path: Path, dtype: torch.dtype | None = torch.float32, **known: object
) -> Autoencoder:
    """A first stage alone, ready for use. Raises UndustError for a folder that is not one.

    path: the folder, or a file of weights with its config.json beside it.
    """
    network = read_whole(
        path.parent if path.is_file() else path,
        lambda: load_network(Autoencoder, AutoencoderConfig, path, dtype, **known),
    )
    return network.eval().requires_grad_(False)


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
