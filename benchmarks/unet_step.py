"""One U-Net call at the configuration of Stable Diffusion: undust against another library.

    python benchmarks/unet_step.py [--model sd1] [--peer diffusers] [--engine auto]
                                   [--rounds 5] [--size 512] [--batch 2] [--dtype float32]
                                   [--device cpu]

peer: diffusers, diffusers-channels-last, diffusers-compiled (torch.compile), or openvino (needs
`pip install openvino`), which converts its network itself. Each side has a process of its
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
from full_size import MODELS

OURS = "undust"
PEERS = ("diffusers", "diffusers-channels-last", "diffusers-compiled", "openvino")


def inputs(asked: argparse.Namespace, **place: Any) -> dict[str, Any]:
    """Random inputs of a call: x, timestep, text, and where the model has them sizes and pooled."""
    import torch

    side, config = asked.size // 8, MODELS[asked.model]["unet"]
    found = {
        "x": torch.randn(asked.batch, 4, side, side, **place),
        "timestep": torch.full((asked.batch,), 500, device=place["device"]),
        "text": torch.randn(asked.batch, 77, config["cross_attention_dim"], **place),
    }
    if "addition_embed_type" in config:
        numbers = torch.tensor([asked.size, asked.size, 0, 0, asked.size, asked.size])
        found["size_ids"] = numbers.to(place["device"]).expand(asked.batch, -1)
        found["pooled"] = torch.randn(asked.batch, 1280, **place)
    return found


def conditioning(given: dict[str, Any]) -> Any:
    """The conditions of these inputs for undust's network."""
    from undust.networks.conditioning import Conditioning

    named = {name: given[name] for name in ("text", "size_ids", "pooled") if name in given}
    return Conditioning(len(given["text"]), **named)


def undust_call(asked: argparse.Namespace, place: dict[str, Any]) -> Callable[..., object]:
    """undust's network, by an engine, brought to the device as a model's networks are."""
    import torch

    from undust.adapters.offload import Offload
    from undust.engines.registry import chosen
    from undust.networks.unet import UNet, UNetConfig

    device = torch.device(asked.device)
    network = UNet(UNetConfig(**MODELS[asked.model]["unet"])).to(place["dtype"])
    engine = chosen(asked.engine, [network.eval().requires_grad_(False)], device)
    print(f"undust: engine {engine.name}")
    fast, offload, given = engine(network), Offload(device), inputs(asked, **place)
    cond = conditioning(given)
    return lambda: offload.run(fast, lambda: fast(given["x"], given["timestep"], cond))


def peer_call(asked: argparse.Namespace, place: dict[str, Any]) -> Callable[..., object]:
    """The peer's network."""
    import torch
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(**MODELS[asked.model]["unet"]).to(**place)
    network.eval().requires_grad_(False)
    given = inputs(asked, **place)
    if asked.peer == "openvino":
        return openvino_call(network, given, asked.dtype)
    if asked.peer != "diffusers":
        network = network.to(memory_format=torch.channels_last)
    if asked.peer == "diffusers-compiled":
        network = torch.compile(network)
    added = None
    if "pooled" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["size_ids"]}
    return lambda: network(
        *(given[name] for name in ("x", "timestep", "text")),
        added_cond_kwargs=added,
        return_dict=False,
    )


def openvino_call(network: Any, given: dict[str, Any], dtype: str) -> Callable[..., object]:
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

    example = tuple(given[name].float() for name in ("x", "timestep", "text"))
    shapes = [each.shape for each in example]
    began = time.perf_counter()
    with torch.no_grad():
        model = openvino.convert_model(Plain().float(), example_input=example)
    model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    print(f"openvino {openvino.__version__}: {time.perf_counter() - began:.0f} s to convert")
    return lambda: compiled(example)


def prepare(side: str, asked: argparse.Namespace) -> Callable[[], float]:
    """Builds the network of a side; the call computes one step."""
    import torch

    place: dict[str, Any] = {"dtype": getattr(torch, asked.dtype), "device": asked.device}
    network = (undust_call if side == OURS else peer_call)(asked, place)

    @torch.inference_mode()
    def call() -> float:
        start = time.perf_counter()
        network()
        if asked.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    return call


def operations(asked: argparse.Namespace) -> float:
    """Floating-point operations of a call: matrix products and convolutions, as defined."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from undust.networks.unet import UNet, UNetConfig

    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        given = inputs(asked, device="meta")
        network = UNet(UNetConfig(**MODELS[asked.model]["unet"]))
        network(given["x"], given["timestep"], conditioning(given))
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


def report(times: dict[str, list[float]], work: float, peak: float) -> None:
    """Prints the ratio of two sides and their shares of `peak`, for `work` operations a call."""
    ours, theirs = times
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(
        f"ratio {ours} / {theirs}: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
    )
    print(f"{work / 1e12:.2f} TFLOP a call; a matrix product reaches {peak / 1e9:.0f} GFLOP/s")
    for side, each in times.items():
        rate = work / statistics.median(each)
        print(f"{side}: {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of that")


def main() -> None:
    """Runs the rounds and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd1")
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
    report(times, work, peak)


if __name__ == "__main__":
    main()
