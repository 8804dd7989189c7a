"""One U-Net call at Stable Diffusion 1.5's configuration: undust against diffusers.

    python benchmarks/unet_step.py [--rounds 5] [--size 512] [--batch 2] [--dtype float32]
                                   [--device cpu]

Each library has a process of its own, with random weights of the same shapes; calls alternate, so
that both see the same machine. Prints seconds and the ratio of each round, undust over diffusers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


def serve(library: str, batch: int, size: int, dtype: str, device: str, pipe: Connection) -> None:
    """Builds the network, then times one call for every message."""
    import torch

    text = torch.randn(batch, 77, 768, dtype=getattr(torch, dtype), device=device)
    if library == "undust":
        from undust.networks.conditioning import Conditioning
        from undust.networks.unet import UNet, UNetConfig

        network, cond = UNet(UNetConfig(**SD15)), Conditioning(batch, text)
    else:
        from diffusers import UNet2DConditionModel

        network, cond = UNet2DConditionModel(**SD15), text
    place = {"dtype": getattr(torch, dtype), "device": device}
    network = network.to(**place).eval()
    x = torch.randn(batch, 4, size // 8, size // 8, **place)
    timestep = torch.full((batch,), 500, device=device)
    pipe.send("ready")
    with torch.inference_mode():
        while pipe.recv():
            start = time.perf_counter()
            network(x, timestep, cond)
            if device != "cpu":
                torch.accelerator.synchronize()
            pipe.send(time.perf_counter() - start)


def main() -> None:
    """Runs the rounds and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for library in ("undust", "diffusers"):
        pipes[library], end = context.Pipe()
        arguments = (library, asked.batch, asked.size, asked.dtype, asked.device, end)
        context.Process(target=serve, args=arguments, daemon=True).start()
        end.close()  # so that a process that dies is noticed
        pipes[library].recv()
    ratios: list[float] = []
    for number in range(asked.rounds + 1):
        seconds: dict[str, float] = {}
        for library, pipe in pipes.items():
            pipe.send(True)
            seconds[library] = pipe.recv()
        if number:  # the first round warms both up
            ratios.append(seconds["undust"] / seconds["diffusers"])
            print(
                f"round {number}: undust {seconds['undust']:.2f} s, "
                f"diffusers {seconds['diffusers']:.2f} s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
    for pipe in pipes.values():
        pipe.send(False)
    print(
        f"ratio undust / diffusers: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
    )


if __name__ == "__main__":
    main()
