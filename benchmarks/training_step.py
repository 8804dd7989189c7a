"""A training step of Stable Diffusion's U-Net: undust against diffusers.

    python benchmarks/training_step.py [--model sd1] [--size 512] [--batch 2] [--rounds 3]
                                       [--precision fp32] [--device cpu] [--compile] [--sgd]

Forward and backward pass and AdamW (--sgd: plain gradient descent, which needs half of the memory,
so that both sides fit into 24 GiB), all as the training loop has it: weights in float32, bf16 by
autocast, and on a CPU in fp32 the convolutions that are faster there; --compile compiles both
sides. Each has a process of its own, with random weights of the same shapes; steps alternate.
Prints seconds and ratios, then floating-point operations a second (three times those of a forward
pass), also as a share of what a large matrix product reaches here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from alternating import alternate
from full_size import MODELS
from unet_step import conditioning, inputs, matrix_peak, operations, report

SIDES = ("undust", "diffusers")


def prepare(side: str, asked: argparse.Namespace) -> Callable[[], float]:
    """Builds the network of a side; the call trains one step."""
    import torch

    given = inputs(asked, device=asked.device)
    network, predict = (ours if side == SIDES[0] else theirs)(asked, given)
    network.to(asked.device).train()
    if asked.compile:
        network.compile()
    kind = torch.optim.SGD if asked.sgd else torch.optim.AdamW
    optimizer = kind(network.parameters(), lr=1e-4, fused=True)
    half = torch.autocast(asked.device, torch.bfloat16, enabled=asked.precision == "bf16")

    def call() -> float:
        start = time.perf_counter()
        with half:
            output = predict()
        (output.float() - given["x"]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if asked.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    return call


def ours(asked: argparse.Namespace, given: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """undust's network, and its call."""
    from undust.engines import probe
    from undust.engines.memory import keep_freed_memory
    from undust.engines.winograd import replace_convolutions
    from undust.networks.unet import UNet, UNetConfig

    network, cond = UNet(UNetConfig(**MODELS[asked.model]["unet"])), conditioning(given)
    if asked.device == "cpu":
        keep_freed_memory()
        if asked.precision == "fp32" and not asked.compile and probe.winograd_trains_faster():
            replace_convolutions(network)
    return network, lambda: network(given["x"], given["timestep"], cond)


def theirs(asked: argparse.Namespace, given: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """diffusers' network, and its call."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(**MODELS[asked.model]["unet"])
    added = None
    if "pooled" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["size_ids"]}
    places = [given[name] for name in ("x", "timestep", "text")]
    return network, lambda: network(*places, added_cond_kwargs=added, return_dict=False)[0]


def main() -> None:
    """Runs the rounds and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd1")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--sgd", action="store_true")
    asked = parser.parse_args()
    asked.dtype = "bfloat16" if asked.precision == "bf16" else "float32"  # of the matrix product
    peak, work = matrix_peak(asked), 3 * operations(asked)
    times = alternate(SIDES, asked.rounds, prepare, asked)
    report(times, work, peak)


if __name__ == "__main__":
    main()
