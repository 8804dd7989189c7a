"""Attention at the shapes of Stable Diffusion's U-Net: torch's fused one against plain products.

    python benchmarks/attention_forward.py [--rounds 5]

Plain: scores of some rows of queries, their softmax, and its product with the values, a head at a
time ("rows") or all heads together ("heads × rows"), so that the scores stay in the cache; float32,
without gradients. Prints GFLOP/s, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from undust.engines.memory import keep_freed_memory

SHAPES = {  # heads of both entries, queries, keys, channels of a head
    "SD1 64×64": (16, 4096, 4096, 40),
    "SD1 32×32": (16, 1024, 1024, 80),
    "SD1 16×16": (16, 256, 256, 160),
    "SDXL 64×64": (20, 4096, 4096, 64),
    "SD1 64×64 to text": (16, 4096, 77, 40),
    "SD1 32×32 to text": (16, 1024, 77, 80),
}
ROWS = (64, 128, 256, 512)


def plain(q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int) -> Tensor:
    """Attention [H,N,d] of `heads` heads and `rows` queries at a time."""
    q, k = q * q.shape[-1] ** -0.5, k.transpose(1, 2)
    output = torch.empty_like(q)
    for head in range(0, len(q), heads):
        some = slice(head, head + heads)
        for row in range(0, q.shape[1], rows):
            scores = torch.bmm(q[some, row : row + rows], k[some])
            output[some, row : row + rows] = torch.bmm(scores.softmax(-1), v[some])
    return output


def seconds(call: Callable[[], Tensor], rounds: int) -> float:
    """The median time of a call."""
    call()
    taken: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@torch.inference_mode()
def main() -> None:
    """Checks that all give the same, and prints their speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    for name, (heads, queries, keys, channels) in SHAPES.items():
        q = torch.randn(heads, queries, channels)
        k, v = torch.randn(2, heads, keys, channels)
        flops = 4 * heads * queries * keys * channels / 1e9

        def fused(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return scaled_dot_product_attention(q[None], k[None], v[None])[0]

        found = {"fused": flops / seconds(fused, rounds)}
        for rows in (rows for rows in ROWS if rows <= queries):
            for together, label in ((1, f"{rows}"), (heads, f"{heads} × {rows}")):
                torch.testing.assert_close(plain(q, k, v, rows, together), fused())
                call = lambda: plain(q, k, v, rows, together)  # noqa: E731, B023
                found[label] = flops / seconds(call, rounds)
        print(name, ", ".join(f"{key}: {speed:.0f}" for key, speed in found.items()), flush=True)


if __name__ == "__main__":
    main()
