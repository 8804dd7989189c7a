"""Pixels against latents: a U-Net on each, and JiT on pixels, with equal weights, data and time.

.venv/bin/python benchmarks/pixel_latent.py --data data/emoji-64 --minutes 30

All are unconditional denoisers of rectified flow, with the same optimizer and batches, of a number
of weights within 5 % of --weights. Each runs in a process of its own. Its steps are those that a
few timed ones say fit into --minutes (all are timed before the first one is trained); quality is
measured at the end, and with --parts 0.25 0.5 1 of runs of a quarter and a half of the time too. A
run that was stopped continues, and a finished one is not repeated: results are in
OUT/NAME/result.json, the table in OUT/table.md, and pictures in OUT/pictures.png, a row for each.
Sampling is timed at the end, in alternation.
The first stage's own training is not in the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import undust
from undust.datasets import image_folder
from undust.engines.processor import processor
from undust.evaluation.generated import GeneratedFigures, PictureQuery
from undust.evaluation.networks import FigureNetworks
from undust.evaluation.pictures import PictureSet
from undust.formats.components import load_first_stage, new_denoiser
from undust.pictures import grid
from undust.training import kinds
from undust.training.derived import first_stage_at
from undust.training.diffusion import DiffusionConfig
from undust.training.machine import peak_memory
from undust.training.run import train

NAMES = {
    "pixel-unet": "U-Net on pixels (ADM)",
    "latent-unet": "U-Net on latents",
    "pixel-jit": "JiT on pixels",
}
TOLERANCE = 0.05  # of the number of weights
TIMED, SHOWN, ROUNDS = 12, 12, 3  # steps, pictures, timings of sampling
Network = tuple[str, dict[str, Any]]
"""The name of a recipe's table, and its fields."""
FLOW = {"process": "flow", "times": "logit-normal:mean=0.8,deviation=0.8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"))
    parser.add_argument("--first-stage", default="emoji", help="of the latents; a name or a folder")
    parser.add_argument("--out", type=Path, default=Path("runs/pixel-latent"))
    parser.add_argument("--minutes", type=float, default=30.0, help="training of each")
    parser.add_argument("--parts", nargs="*", type=float, default=[1.0], help="shares of it")
    parser.add_argument("--weights", type=float, default=6e6, help="of each denoiser")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=500, help="generated for the figures")
    parser.add_argument("--real", type=int, default=2000, help="pictures that they are compared to")
    parser.add_argument("--steps", type=int, default=25, help="of sampling")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a child does
    given = parser.parse_args()
    if given.one:
        task, name, part = given.one.split(":")
        TASKS[task](given, name, float(part))
        return
    for part in given.parts:
        for name in given.only:
            if not (given.out / f"{name}-{part:g}/plan.json").is_file():
                child("plan", name, part)
    rows: list[dict[str, Any]] = []
    for part in given.parts:
        for name in given.only:
            folder = given.out / f"{name}-{part:g}"
            if not (folder / "result.json").is_file():
                child("measure", name, part)
            rows.append(json.loads((folder / "result.json").read_text("utf-8")))
    time_sampling(given, rows)
    (given.out / "table.md").write_text("\n".join(table(rows)) + "\n", "utf-8")
    shown = [Image.open(given.out / row["folder"] / "shown.png") for row in rows]
    grid(shown, columns=1).save(given.out / "pictures.png")
    print((given.out / "table.md").read_text("utf-8"))


def child(task: str, name: str, part: float) -> None:
    """A task of one of them in a process of its own."""
    own = ["--one", f"{task}:{name}:{part}"]
    subprocess.run([sys.executable, __file__, *sys.argv[1:], *own], check=True)


def plan(given: argparse.Namespace, name: str, part: float) -> None:
    """Times a few steps of one of them; writes the number that fits into its time."""
    out = given.out / f"{name}-{part:g}"
    out.mkdir(parents=True, exist_ok=True)
    pace = seconds_per_step(parsed(recipe(given, name), given.changes))
    steps = max(1, int(60 * given.minutes * part / pace))
    (out / "plan.json").write_text(json.dumps({"steps": steps, "pace": pace}), "utf-8")


def measure(given: argparse.Namespace, name: str, part: float) -> None:
    """Trains, samples and measures one of them; writes its result."""
    out = given.out / f"{name}-{part:g}"
    tree = recipe(given, name)
    planned = json.loads((out / "plan.json").read_text("utf-8"))
    every = max(1, planned["steps"] // 10)
    tree["run"] |= {"steps": planned["steps"], "checkpoint_every": every}
    config = parsed(tree, given.changes)
    train(config, out, resume=True, observe=lambda done: say(name, done.step, done.steps))
    memory = peak_memory()
    training_memory = memory.get("memory_cuda", memory["memory"])
    model = undust.load(out / "model")
    pictures = model.generate([], count=SHOWN, seed=0, steps=given.steps)
    grid([picture.image for picture in pictures], columns=SHOWN).save(out / "shown.png")
    paths = [sample.path for sample in image_folder.read(given.data)]
    paths = paths[:: max(1, len(paths) // given.real)][: given.real]
    networks = FigureNetworks.load(perceptual="none")
    real = PictureSet.of_files(paths, model.size)
    queries = [PictureQuery("")] * given.pictures
    figures = GeneratedFigures(real, queries, networks, options={"steps": given.steps})
    found = figures(model, out / "generated")
    first_stage = sum(each.numel() for each in model.autoencoder.parameters())
    result = {
        "name": NAMES[name],
        "folder": out.name,
        "weights": sum(each.numel() for each in model.unet.parameters()),
        "weights of the first stage": first_stage,
        "minutes": given.minutes * part,
        "steps": planned["steps"],
        "training": config.run.batch / planned["pace"],
        "training_memory": training_memory,
        "processor": processor(config.run.place),
        "threads": torch.get_num_threads(),
        "figures": {figure.name: figure.shown for figure in found},
    }
    (out / "result.json").write_text(json.dumps(result, indent=1), "utf-8")


def time_sampling(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Adds the pictures a second that each samples, the median of rounds in alternation."""
    models = [undust.load(given.out / row["folder"] / "model") for row in rows]
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, times in zip(models, seconds, strict=True):
            began = time.perf_counter()
            model.generate([], count=SHOWN, seed=0, steps=given.steps)
            times.append(time.perf_counter() - began)
    for row, times in zip(rows, seconds, strict=True):
        row["sampling"] = SHOWN / statistics.median(times)


def recipe(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """The recipe of one of them, with the network that is nearest to --weights."""
    pixels = name.startswith("pixel")
    tree: dict[str, Any] = {
        "kind": "diffusion",
        "first_stage": "pixels" if pixels else given.first_stage,
        "data": {"folder": str(given.data), "size": given.size},
        "optimizer": {"learning_rate": 4e-4, "warm_up": 0.02, "cool_down": 0.2},
        "run": {
            "steps": TIMED,
            "batch": given.batch,
            "ema": 0.999,
            "precision": "auto",
            "sample_every": 10**8,
        },
        "diffusion": FLOW,
    }
    if name == "pixel-jit":
        tree["diffusion"] = {**FLOW, "prediction": "sample", "weighting": "velocity"}
    side, channels = given.size, 3
    if not pixels:
        first = load_first_stage(first_stage_at(Path(given.first_stage)))
        side, channels = given.size // first.downsampling_factor, first.latent_channels
    found, count = nearest(name, side, channels, given.weights)
    if abs(count / given.weights - 1) > TOLERANCE:
        raise SystemExit(f"{name}: no network has {given.weights:.0f} weights; {count} is nearest")
    return {**tree, found[0]: found[1]}


def nearest(name: str, side: int, channels: int, wanted: float) -> tuple[Network, int]:
    """The network with the number of weights that is nearest to the wanted one, and that."""
    best: tuple[Network, int] | None = None
    for width in range(16, 2048, 8 if name.endswith("unet") else 16):
        least = None
        for network in networks(name, side, width):
            count = weights_of(network, channels)
            least = count if least is None else min(least, count)
            if best is None or abs(count - wanted) < abs(best[1] - wanted):
                best = network, count
            if count > wanted:
                break  # they grow
        if best is not None and least is not None and least > wanted:
            return best
    raise SystemExit(f"{name}: no network has {wanted:.0f} weights")


def networks(name: str, side: int, width: int) -> Iterator[Network]:
    """Networks of a width for pictures or latents of `side`, from few weights to many."""
    if name == "pixel-jit":
        own = {"patch_size": max(2, side // 8), "bottleneck_dim": 64, "num_attention_heads": 4}
        for layers in range(max(4, width // 48), width // 24 + 1):  # in the paper width // 64
            yield "jit", {"hidden_size": width, "num_layers": layers, "in_context_start": 0, **own}
        return
    levels = 4 if name == "pixel-unet" else 2
    wide = [width * (level + 1) for level in range(levels)]  # as in ADM
    attended = ["Attn" * (side // 2**level <= 16) for level in range(levels)]
    for last in range(wide[-1] - width // 16 * 8, wide[-1] + width // 2 + 1, 8):
        yield (
            "unet2d",
            {
                "block_out_channels": [*wide[:-1], last],
                "down_block_types": [f"{each}DownBlock2D" for each in attended],
                "up_block_types": [f"{each}UpBlock2D" for each in attended[::-1]],
                "layers_per_block": 2,
                "attention_head_dim": 8,
                "norm_num_groups": 8,
                "resnet_time_scale_shift": "scale_shift",
            },
        )


def weights_of(network: Network, channels: int) -> int:
    """The number of a network's weights."""
    fields = DiffusionConfig.model_fields[network[0]].annotation
    kind: Any = next(each for each in fields.__args__ if each is not type(None))  # type: ignore
    size = {"sample_size": 64, "in_channels": channels, "out_channels": channels}
    config = kind.read({**network[1], **size})
    with torch.device("meta"):
        return sum(each.numel() for each in new_denoiser(config).parameters())


def parsed(tree: dict[str, Any], changes: Sequence[str]) -> kinds.AnyTrainingConfig:
    """The recipe with the changes of --set."""
    for change in changes:
        key, _, value = change.partition("=")
        table, _, field = key.partition(".")
        tree[table] = {**tree.get(table, {}), field: json.loads(value)}
    return kinds.parse(tree, "pixel_latent.py")


def seconds_per_step(config: kinds.AnyTrainingConfig) -> float:
    """The median duration of a step, of a run of which nothing is kept."""
    times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="undust-pace-") as scratch:
        train(config, Path(scratch, "run"), observe=lambda done: times.append(done.seconds))
    return statistics.median(times[2:])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The results as a table in Markdown, and where they were measured."""
    figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    heads = ["", "minutes", "weights (first stage)", "steps", "training, pictures/s"]
    heads += [
        "sampling, pictures/s",
        "training memory, GiB",
        *(name.split(",")[0] for name in figures),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        own = f"{row['weights'] / 1e6:.2f}M"
        if row["weights of the first stage"]:
            own += f" ({row['weights of the first stage'] / 1e6:.2f}M)"
        cells = [row["name"], f"{row['minutes']:g}", own, str(row["steps"])]
        cells += [
            f"{row['training']:.1f}",
            f"{row['sampling']:.2f}",
            f"{row['training_memory']:.2f}",
        ]
        cells += [row["figures"].get(name, "") for name in figures]
        lines.append("| " + " | ".join(cells) + " |")
    threads = {row["threads"] for row in rows}
    places = ", ".join(dict.fromkeys(row["processor"] for row in rows))
    counts = "/".join(map(str, sorted(threads)))
    return [*lines, "", f"{places}, {counts} threads.", "", *figures]


def say(name: str, step: int, steps: int) -> None:
    if step == steps or step % 100 == 0:
        print(f"{name}: {step} of {steps} steps", flush=True)


TASKS = {"plan": plan, "measure": measure}

if __name__ == "__main__":
    main()
