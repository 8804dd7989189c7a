"""The emoji's first stage with all losses and without each of them, trained for the same time.

.venv/bin/python benchmarks/first_stage_ablation.py --data data/emoji-64 --minutes 20

Each variant is one recipe with `--set` lines. Its steps are those that a few timed ones say fit
into the time, so that warm-up and cool-down fit too; all are timed before the first is trained. A
run that was stopped continues, and a finished one is not repeated: the results are in
OUT/VARIANT/result.json, the table in OUT/table.md, and pictures with their reconstructions in
OUT/pictures.png, a row for each variant.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from undust.datasets import image_folder
from undust.evaluation.distributions import frechet_distance
from undust.evaluation.first_stage import reconstruct
from undust.evaluation.metrics import psnr, ssim
from undust.formats.components import load_first_stage
from undust.formats.feature_networks import load_features
from undust.networks.features.base import FeatureNetwork
from undust.networks.features.perceptual import PerceptualDistance
from undust.pictures import from_image, grid, read_image, to_images
from undust.training import kinds
from undust.training.first_stage import FirstStageConfig
from undust.training.run import train

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = "emoji-first-stage-losses"
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "as before": ("emoji-first-stage", []),
    "all losses": (ALL, []),
    "without pixels": (ALL, ["loss.pixel=none"]),
    "without edges": (ALL, ["loss.edges=0"]),
    "without features": (ALL, ["loss.perceptual=0"]),
    "without discriminator": (ALL, ["discriminator.weight=0"]),
    "without adaptive weight": (ALL, ["discriminator.adaptive=false"]),
    "without learned variance": (ALL, ["loss.learned_variance=false"]),
    "without equivariance": (ALL, ["loss.equivariance=0"]),
    "without KL": (ALL, ["loss.kl=0"]),
}
TIMED = 24  # steps
BATCH = 50  # pictures of a feature network
SHOWN = 12  # pictures
RECIPE = "variant.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"))
    parser.add_argument("--out", type=Path, default=Path("runs/first-stage-ablation"))
    parser.add_argument("--minutes", type=float, default=20.0, help="training of each variant")
    parser.add_argument("--pictures", type=int, default=500, help="measured ones, at most")
    parser.add_argument("--init", help="a first stage to start from; else from random weights")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    changes = [f"data.folder={given.data}", *given.changes]
    for name in given.only:
        out = given.out / name.replace(" ", "-")
        out.mkdir(parents=True, exist_ok=True)
        write_recipe(out / RECIPE, VARIANTS[name][0], given.init)
        set_plan(out, name, changes, given.minutes * 60)
    pictures = measured_pictures(given.data, given.pictures)
    features = load_features("vgg16"), load_features("efficientnet-lite0")
    rows: list[dict[str, float | str]] = []
    shown = [pictures[:SHOWN]]
    for name in given.only:
        folder = trained(given.out / name.replace(" ", "-"), name, changes)
        network = load_first_stage(folder / "model")
        shown.append(reconstruct(network, pictures[:SHOWN]))
        result = folder / "result.json"
        if not result.is_file():
            y = torch.cat([reconstruct(network, part) for part in pictures.split(BATCH)])
            figures = measured(pictures, y, *features)
            plan = json.loads((folder / "plan.json").read_text("utf-8"))
            result.write_text(json.dumps({"variant": name, **plan, **figures}), "utf-8")
        rows.append(json.loads(result.read_text("utf-8")))
        grid(to_images(torch.cat(shown)), columns=SHOWN).save(given.out / "pictures.png")
        page = "\n".join(table(rows)) + "\n"
        (given.out / "table.md").write_text(page, "utf-8")
    print(page)


def write_recipe(path: Path, name: str, init: str | None) -> None:
    """One of the recipes; if it starts from a first stage, without a network of its own."""
    text = (RECIPES / f"{name}.toml").read_text("utf-8")
    if init:
        text = f'init = "{init}"\n' + re.sub(r"(?ms)^\[autoencoder\].*?(?=^\[)", "", text)
    path.write_text(text, "utf-8")


def set_plan(out: Path, name: str, changes: Sequence[str], seconds: float) -> None:
    """Times a few steps of a variant; writes the number that fits into so many seconds."""
    planned = out / "plan.json"
    if not planned.is_file():
        pace = seconds_per_step(out / RECIPE, [*changes, *VARIANTS[name][1]])
        planned.write_text(json.dumps({"steps": int(seconds / pace), "pace": pace}), "utf-8")


def trained(out: Path, name: str, changes: Sequence[str]) -> Path:
    """The folder of a variant's run of the planned number of steps."""
    steps = json.loads((out / "plan.json").read_text("utf-8"))["steps"]
    every = max(1, steps // 10)
    lengths = [f"run.{key}={every}" for key in ("sample_every", "checkpoint_every")]
    own = [*changes, *VARIANTS[name][1], f"run.steps={steps}", *lengths]
    config = kinds.read(out / RECIPE, own)
    train(config, out, resume=True, observe=lambda done: say(name, done.step, done.steps))
    return out


def seconds_per_step(recipe: Path, changes: Sequence[str]) -> float:
    """The mean duration of a step over a run: before the discriminator starts, and after it."""
    config = kinds.read(recipe, changes)
    assert isinstance(config, FirstStageConfig)
    given = config.discriminator
    share = given.start if given.weight and given.start < 1 else 0.0
    parts: list[float] = []
    for start in ("9999", "0"):
        timed = kinds.read(recipe, [*changes, f"run.steps={TIMED}", f"discriminator.start={start}"])
        parts.append(statistics.mean(step_times(timed)[2:]))
    return share * parts[0] + (1 - share) * parts[1]


def step_times(config: kinds.AnyTrainingConfig) -> list[float]:
    """The duration of each step of a run, of which nothing is kept."""
    times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="undust-pace-") as scratch:
        train(config, Path(scratch, "run"), observe=lambda done: times.append(done.seconds))
    return times


def measured_pictures(data: Path, count: int) -> Tensor:
    """Held-out pictures, or if there are none a fixed choice of all: [N,3,64,64] in [-1,1]."""
    samples = image_folder.read(data)
    chosen = [sample for sample in samples if sample.split != "train"] or list(samples)
    chosen = chosen[:: max(1, len(chosen) // count)][:count]
    images = [from_image(read_image(sample.path), (64, 64)) for sample in chosen]
    return torch.stack(images) / 127.5 - 1


@torch.inference_mode()
def measured(
    x: Tensor, y: Tensor, vgg: FeatureNetwork, efficientnet: FeatureNetwork
) -> dict[str, float]:
    """Figures of reconstructions y of pictures x, by their names in the table."""
    distance = PerceptualDistance(vgg)
    pairs = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    vectors = [
        torch.cat([efficientnet.pooled(part) for part in each.split(BATCH)]) for each in (x, y)
    ]
    return {
        "PSNR": float(psnr(x, y).mean()),
        "SSIM": float(ssim(x, y).mean()),
        distance.name: float(torch.cat([distance(a, b) for a, b in pairs]).mean()),
        f"Fréchet distance, {efficientnet.name}, {len(x)} pictures": frechet_distance(*vectors),
        "edges": steepness(y) / steepness(x),
    }


def steepness(x: Tensor) -> float:
    """The root mean square of a picture's gradients: blurred edges have less."""
    squares = [x.diff(dim=dim).square().mean() for dim in (2, 3)]
    return float(sum(squares, torch.zeros(())).sqrt())


def table(rows: Sequence[dict[str, float | str]]) -> list[str]:
    """The results as a table in Markdown."""
    names = [name for name in rows[0] if name not in ("variant", "steps", "pace")]
    head = ["losses", "steps", *names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        figures = [f"{row[name]:.4g}" for name in names]
        lines.append("| " + " | ".join([str(row["variant"]), str(row["steps"]), *figures]) + " |")
    return lines


def say(name: str, step: int, steps: int) -> None:
    if step == steps or step % 100 == 0:
        print(f"{name}: {step} of {steps} steps", flush=True)


if __name__ == "__main__":
    main()
