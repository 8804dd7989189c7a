"""One U-Net call at Stable Diffusion 1.5's configuration: undust against another library.

    python benchmarks/unet_step.py [--peer diffusers] [--engine auto] [--rounds 5] [--size 512]
                                   [--batch 2] [--dtype float32] [--device cpu]

peer: diffusers, diffusers-channels-last, diffusers-compiled (torch.compile), or openvino (needs
`pip install openvino`), which converts diffusers' network itself. Each side has a process of its
own, with random weights of the same shapes; calls alternate, so that both see the same machine.
Prints seconds and the ratio of each round, undust over the peer, then floating-point operations a
second, also as a share of what a large matrix product reaches here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from alternating import alternate

SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
OURS = "undust"
PEERS = ("diffusers", "diffusers-channels-last", "diffusers-compiled", "openvino")


def undust_call(asked: argparse.Namespace, place: dict[str, Any]) -> Callable[..., object]:
    """undust's network, by an engine."""
    import torch

    from undust.engines.registry import chosen
    from undust.networks.conditioning import Conditioning
    from undust.networks.unet import UNet, UNetConfig

    network = UNet(UNetConfig(**SD15)).to(**place).eval().requires_grad_(False)
    engine = chosen(asked.engine, [network], torch.device(asked.device))
    fast = engine(network)
    return lambda x, time, text: fast(x, time, Conditioning(asked.batch, text))


def peer_call(asked: argparse.Namespace, place: dict[str, Any]) -> Callable[..., object]:
    """The peer's network."""
    import torch
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(**SD15).to(**place).eval().requires_grad_(False)
    if asked.peer == "openvino":
        return openvino_call(network, asked)
    if asked.peer != "diffusers":
        network = network.to(memory_format=torch.channels_last)
    if asked.peer == "diffusers-compiled":
        network = torch.compile(network)
    return lambda x, time, text: network(x, time, text, return_dict=False)


def openvino_call(network: Any, asked: argparse.Namespace) -> Callable[..., object]:
    """diffusers' network as OpenVINO converts it, for one shape."""
    import openvino
    import torch

    class Plain(torch.nn.Module):
        """Tensors in and out."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any, timestep: Any, text: Any) -> Any:
            """As the network."""
            return self.network(x, timestep, text, return_dict=False)[0]

    side = asked.size // 8
    shapes = ((asked.batch, 4, side, side), (asked.batch,), (asked.batch, 77, 768))
    example = (torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(shapes[2]))
    began = time.perf_counter()
    with torch.no_grad():
        model = openvino.convert_model(Plain().float(), example_input=example)
    model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
    precision = {"float32": "f32", "bfloat16": "bf16"}[asked.dtype]
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    print(f"openvino {openvino.__version__}: {time.perf_counter() - began:.0f} s to convert")
    return lambda x, time, text: compiled((x.float(), time.float(), text.float()))


def prepare(side: str, asked: argparse.Namespace) -> Callable[[], float]:
    """Builds the network of a side; the call computes one step."""
    import torch

    place: dict[str, Any] = {"dtype": getattr(torch, asked.dtype), "device": asked.device}
    network = (undust_call if side == OURS else peer_call)(asked, place)
    x = torch.randn(asked.batch, 4, asked.size // 8, asked.size // 8, **place)
    text = torch.randn(asked.batch, 77, 768, **place)
    timestep = torch.full((asked.batch,), 500, device=asked.device)

    @torch.inference_mode()
    def call() -> float:
        start = time.perf_counter()
        network(x, timestep, text)
        if asked.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    return call


def operations(asked: argparse.Namespace) -> float:
    """Floating-point operations of a call: matrix products and convolutions, as defined."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from undust.networks.conditioning import Conditioning
    from undust.networks.unet import UNet, UNetConfig

    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        text = torch.empty(asked.batch, 77, 768)
        x = torch.empty(asked.batch, 4, asked.size // 8, asked.size // 8)
        UNet(UNetConfig(**SD15))(x, torch.empty(asked.batch), Conditioning(asked.batch, text))
    return counted.get_total_flops()


def matrix_peak(asked: argparse.Namespace) -> float:
    """Operations a second of a product of matrices of 4096 x 4096, the best of ten."""
    import torch

    size = 4096
    kind = getattr(torch, asked.dtype)
    a, b = (torch.randn(size, size, device=asked.device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if asked.device != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main() -> None:
    """Runs the rounds and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS, default="diffusers")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    peak, work = matrix_peak(asked), operations(asked)
    times = alternate((OURS, asked.peer), asked.rounds, prepare, asked)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(
        f"ratio undust / {asked.peer}: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
    )
    print(f"{work / 1e12:.2f} TFLOP a call; a matrix product reaches {peak / 1e9:.0f} GFLOP/s")
    for side, each in times.items():
        rate = work / statistics.median(each)
        print(f"{side}: {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of that")


if __name__ == "__main__":
    main()
