"""Approximations: what deep cache, adaptive guidance and token merging save, and what they cost.

    python benchmarks/approximations.py DATA [--captions 96] [--rounds 3] [--sheet FILE.png]
    python benchmarks/approximations.py --call sd1 [--size 256] [--batch 1] [--rounds 5]

DATA is of examples/emoji_set.py. The first form makes pictures of captions by the built-in model,
each with the same noise as with --speed exact, in rounds that go through all rows. It prints the
processor time of `exact` over that of the row (median of the rounds), entries of network calls a
picture, floating-point operations of the U-Net as a share of `exact`'s (as a convolution is
defined), captions whose own picture is nearest, and the PSNR to `exact`. The second form prints the
same times for one call of a U-Net with random weights. The tables of docs/speed.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import undust
from full_size import MODELS
from undust.adapters.token_merging import MergingNetworks
from undust.datasets import image_folder
from undust.engines.registry import chosen
from undust.evaluation.pictures import PictureSet, in_unit_range
from undust.evaluation.recall import ReferenceSet
from undust.generation import loop
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNetConfig
from undust.networks.deep_cache import DeepFeatures
from undust.networks.unet import AnyUNet, UNet
from undust.pictures import from_image, grid
from undust.pipeline import LatentDiffusion
from unet_step import conditioning, inputs

SIZE = (64, 64)
INTERVAL = "interval:low=0.3,high=5"
ROWS: dict[str, dict[str, Any]] = {
    "--speed exact": {},
    "--deep-cache 2": {"deep_cache": 2},
    "--deep-cache 3": {"deep_cache": 3},
    "--deep-cache 5": {"deep_cache": 5},
    "--guide adaptive": {"guides": "adaptive"},
    "--guide adaptive:threshold=0.997": {"guides": "adaptive:threshold=0.997"},
    f"--guide {INTERVAL}": {"guides": INTERVAL},
    "--token-merging 0.25": {"token_merging": 0.25},
    "--token-merging 0.5": {"token_merging": 0.5},
    "--deep-cache 2 --guide adaptive": {"deep_cache": 2, "guides": "adaptive"},
    f"--deep-cache 2 --guide {INTERVAL}": {"deep_cache": 2, "guides": INTERVAL},
    "--steps 10": {"steps": 10},
    "--speed balanced": {"speed": "balanced"},
    "--speed balanced --deep-cache 2": {"speed": "balanced", "deep_cache": 2},
    "--speed balanced --guide adaptive": {"speed": "balanced", "guides": "adaptive"},
    "--speed fast": {"speed": "fast"},
    "--speed fast --guide adaptive": {"speed": "fast", "guides": "adaptive"},
}
Calls = Counter[bool]  # entries of network calls, whole (True) and with deep features


@contextmanager
def counted() -> Iterator[Calls]:
    """Counts the entries of all U-Net calls."""
    found, forward = Calls(), AnyUNet.forward

    def count(self: AnyUNet, x: Tensor, *given: Any, **options: Any) -> Tensor:
        deep = options.get("deep")
        found[deep is None or deep.features is None] += len(x)
        return forward(self, x, *given, **options)

    AnyUNet.forward = count  # type: ignore[method-assign]
    try:
        yield found
    finally:
        AnyUNet.forward = forward  # type: ignore[method-assign]


def operations(network: DenoiserNetwork, *given: Any) -> dict[bool, int]:
    """Floating-point operations of a whole call and of one with deep features."""
    deep, found = DeepFeatures(), dict[bool, int]()
    for whole in (True, False):
        counter = FlopCounterMode(display=False)
        # Of products, as the counter does not know the CPU's fused attention.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            network(*given, deep=deep)
        found[whole] = counter.get_total_flops()
    return found


def pictures(model: LatentDiffusion, captions: Sequence[str], options: dict[str, Any]) -> Tensor:
    """The pictures [N,3,H,W] of captions, caption k with the seed k."""
    recipes = [
        recipe
        for seed, caption in enumerate(captions)
        for recipe in model.recipes(caption, seed=seed, **options)
    ]
    found: list[Tensor] = []
    for batch in loop.batches(model, recipes):
        *_, last = loop.sample_batch(model, batch)
        found += [from_image(each.image, SIZE) for each in loop.decode(batch, last)]
    return torch.stack(found)


def of_the_built_in_model(asked: argparse.Namespace) -> None:
    """The table of pictures."""
    samples = image_folder.read(asked.data)
    references = ReferenceSet(PictureSet.of_samples(samples, SIZE))
    training = [k for k, each in enumerate(samples) if each.split == "train"]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0)).tolist()
    wanted = [training[k] for k in order[: asked.captions]]
    captions = [samples[k].captions["text"] for k in wanted]
    model = undust.load("emoji", engine=asked.engine)
    merging = MergingNetworks()
    given = torch.zeros(1, 16, 8, 8), torch.ones(1), model.condition([captions[0]])
    costs = {
        ratio: operations(merging(model.unet, ratio), *given)
        for ratio in {row.get("token_merging", 0.0) for row in ROWS.values()}
    }
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    made: dict[str, Tensor] = {}
    calls: dict[str, Calls] = {}
    pictures(model, captions, {})  # warms up
    for number in range(asked.rounds):
        for name, options in ROWS.items():
            with counted() as calls[name]:
                start = time.process_time()
                made[name] = pictures(model, captions, options)
                times[name].append(time.process_time() - start)
        print(f"round {number + 1} of {asked.rounds}", flush=True)
    exact, *_ = ROWS
    print("| | time | entries | operations | right emoji nearest | PSNR: median, worst |")
    print("|---|---|---|---|---|---|")
    total = _total(calls[exact], costs[0.0])
    for name, options in ROWS.items():
        speed = statistics.median(a / b for a, b in zip(times[exact], times[name], strict=True))
        work = _total(calls[name], costs[options.get("token_merging", 0.0)]) / total
        entries = calls[name].total() / len(captions)
        ranks = references.ranks(in_unit_range(made[name]), wanted)
        right = sum(rank < 1 for rank in ranks) / len(ranks)
        error = (made[name].float() - made[exact].float()).square().mean((1, 2, 3))
        psnr = 10 * torch.log10(255**2 / error.clamp(min=1e-9))
        quality = "" if name == exact else f"{psnr.median():.1f} dB, {psnr.min():.1f} dB"
        print(
            f"| `{name}` | {speed:.2f} × | {entries:.1f} | {work:.0%} | {right:.1%} | {quality} |"
        )
    if asked.sheet:
        shown = torch.cat([each[:12] for each in made.values()])
        grid([_image(each) for each in shown], columns=12).save(asked.sheet)
        print("rows of the sheet:", *ROWS, sep="\n")


def _total(calls: Calls, costs: dict[bool, int]) -> int:
    return sum(count * costs[whole] for whole, count in calls.items())


def _image(picture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).to(torch.uint8).numpy())


def of_one_call(asked: argparse.Namespace) -> None:
    """The times of one call."""
    config = UNetConfig(**MODELS[asked.call]["unet"])
    unet = UNet(config).eval().requires_grad_(False)
    engine = chosen(asked.engine, [unet], torch.device("cpu"))
    merging, given = MergingNetworks(), inputs(asked, device="cpu")
    cond: Conditioning = conditioning(given)
    deep = DeepFeatures()
    networks = {ratio: merging(unet, ratio) for ratio in (0.0, 0.25, 0.5)}
    plain = engine(unet)
    x, timestep = given["x"], given["timestep"]
    rows: dict[str, Callable[[], object]] = {
        "whole call": lambda: plain(x, timestep, cond),
        "with deep features": lambda: plain(x, timestep, cond, deep=deep),
    }
    for ratio in (0.25, 0.5):
        merged = engine(networks[ratio])
        rows[f"--token-merging {ratio}"] = lambda merged=merged: merged(x, timestep, cond)
    times: dict[str, list[float]] = {name: [] for name in rows}
    with torch.inference_mode():
        plain(x, timestep, cond, deep=deep)
        for number in range(asked.rounds + 1):
            for name, call in rows.items():
                start = time.process_time()
                call()
                if number:
                    times[name].append(time.process_time() - start)
    costs = {ratio: operations(network, x, timestep, cond) for ratio, network in networks.items()}
    whole, *_ = rows
    print("| | time | share | operations |\n|---|---|---|---|")
    work = [costs[0.0][True], costs[0.0][False], costs[0.25][True], costs[0.5][True]]
    for (name, each), flops in zip(times.items(), work, strict=True):
        share = statistics.median(a / b for a, b in zip(each, times[whole], strict=True))
        seconds = statistics.median(each)
        print(f"| `{name}` | {seconds:.2f} s | {share:.2f} | {flops / work[0]:.0%} |")


def main() -> None:
    """Prints one of the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--captions", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--sheet", type=Path, help="a sheet of the first twelve captions, by row")
    parser.add_argument("--call", choices=MODELS, help="one U-Net call of that model")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    asked = parser.parse_args()
    asked.model = asked.call
    if asked.call:
        of_one_call(asked)
    elif asked.data:
        of_the_built_in_model(asked)
    else:
        parser.error("DATA or --call")


if __name__ == "__main__":
    main()
