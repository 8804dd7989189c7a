"""Predictions of ε, x0 and v: error and variance over the time t, of small models trained alike.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/predictions.py --data data/emoji-64 --minutes 4

Trains recipes/emoji-predictions-diffusion.toml with each prediction: the same process, network,
first weights, batches, noise, times, optimizer and number of steps, which a few timed steps say fit
into --minutes; the loss is the plain squared error of each one's own target. Held-out latents with
new noise at fixed times give errors over t, training pictures with new noise the mean and the
variance of the gradient. A run that was stopped continues, and a finished one is not repeated (in
--runs). The result is the file --out, and beside it a PNG with a row of generated pictures for
each; these and the distances of generated pictures are of the first seed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import undust
from undust.datasets import image_folder
from undust.diffusion.prediction import PREDICTIONS
from undust.engines.processor import processor
from undust.evaluation.generated import GeneratedFigures, PictureQuery
from undust.evaluation.networks import FigureNetworks
from undust.evaluation.pictures import PictureSet
from undust.pictures import grid
from undust.training import kinds
from undust.training.data import Batch, RandomStream, SampleOrder
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.encode import encode
from undust.training.run import train

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/emoji-predictions-diffusion.toml"
NAMES = ("epsilon", "sample", "v_prediction")
TIMED, SHOWN = 16, 8  # steps, pictures
COLOURS = 128  # of the file with these
WINDOW = 51  # steps of a running mean of the loss
CURVE = 24  # points of it that are kept
UNSEEN = 10**7  # places of the order of samples that no run comes to: new noise
PART, PARTS = 8, 8  # samples of a gradient, and gradients at each time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"))
    parser.add_argument("--minutes", type=float, default=4.0, help="training of each run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each prediction")
    parser.add_argument("--times", type=int, default=20, help="times t of the errors")
    parser.add_argument("--draws", type=int, default=2, help="of noise for each held-out latent")
    parser.add_argument("--pictures", type=int, default=500, help="generated for the figures")
    parser.add_argument("--real", type=int, default=2000, help="pictures that they are compared to")
    parser.add_argument("--steps", type=int, default=25, help="of sampling")
    parser.add_argument("--runs", type=Path, default=Path("runs/predictions"))
    parser.add_argument(
        "--out", type=Path, default=ROOT / "src/undust/explain/results/predictions.json"
    )
    given = parser.parse_args()
    latents = given.runs / "latents"
    encode(configured(given.data), latents, lambda *_: None, lambda *_: None)
    planned = plan(given.runs / "plan.json", latents, given.minutes)
    paths = [sample.path for sample in image_folder.read(given.data)]
    paths = paths[:: max(1, len(paths) // given.real)][: given.real]
    size = configured(given.data).data.size
    figures = GeneratedFigures(
        PictureSet.of_files(paths, (size, size)),
        [PictureQuery("")] * given.pictures,
        FigureNetworks.load(perceptual="none"),
        options={"steps": given.steps},
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for seed in range(given.seeds):
        for name in NAMES:
            out = given.runs / f"{name}-{seed}"
            if not (out / "result.json").is_file():
                config = configured(
                    latents,
                    f"diffusion.prediction={name}",
                    f"run.steps={planned['steps']}",
                    f"seed={seed}",
                )
                run(config, out, None if seed else figures, given)
            found[name].append(json.loads((out / "result.json").read_text("utf-8")))
    task = task_of(configured(latents), given.runs / "task")
    models = {
        name: {key: [run[key] for run in runs if key in run] for key in runs[0]}
        for name, runs in found.items()
    }
    result = {
        "about": about(given, task, planned),
        **data_figures(task, times_of(task, given.times)),
        "models": models,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(compact(result), "utf-8")
    rows = [Image.open(given.runs / f"{name}-0/shown.png") for name in NAMES]
    shown = grid(rows, columns=1).quantize(COLOURS, dither=Image.Dither.NONE)
    shown.save(given.out.with_suffix(".png"), optimize=True)


def configured(data: Path, *changes: str) -> DiffusionConfig:
    """The recipe with another data set and changes."""
    config = kinds.read(RECIPE, [f"data.folder={json.dumps(str(data))}", *changes])
    assert isinstance(config, DiffusionConfig)
    return config


def task_of(config: DiffusionConfig, out: Path) -> DiffusionTask:
    """The training of a recipe, for its data and its denoiser."""
    return config.complete().task(out, None, lambda *_: None)


def plan(path: Path, latents: Path, minutes: float) -> dict[str, Any]:
    """The number of steps that fits into the minutes, from a few timed ones; kept in a file."""
    if not path.is_file():
        times: list[float] = []
        with tempfile.TemporaryDirectory(prefix="undust-pace-") as scratch:
            config = configured(latents, f"run.steps={TIMED}")
            train(config, Path(scratch, "run"), observe=lambda done: times.append(done.seconds))
        pace = statistics.median(times[2:])
        steps = max(1, int(60 * minutes / pace))
        path.write_text(json.dumps({"steps": steps, "seconds_per_step": pace}), "utf-8")
    return json.loads(path.read_text("utf-8"))


def run(
    config: DiffusionConfig, out: Path, figures: GeneratedFigures | None, given: argparse.Namespace
) -> None:
    """Trains and measures one model; writes its result. figures: None generates no pictures."""
    began = time.monotonic()
    if not train(config, out, resume=True, observe=lambda at: say(out.name, at.step, at.steps)):
        raise SystemExit("stopped; the same command continues")
    say_seconds(out.name, "trained", began)
    task, levels = trained(config, out, given.times)
    result = {
        **errors(task, levels, given.draws),
        **gradients(task, levels),
        **training_figures(out / "log.jsonl", config.optimizer.clip),
    }
    say_seconds(out.name, "measured", began)
    if figures:
        model = undust.load(out / "model")
        pictures = model.generate([], count=SHOWN, seed=0, steps=given.steps)
        grid([picture.image for picture in pictures], columns=SHOWN).save(out / "shown.png")
        distances = {each.name.partition(",")[0]: each.value for each in figures(model)}
        result["frechet_distance"] = distances["Fréchet distance"]
        result["kernel_distance"] = distances["kernel distance"]
        say_seconds(out.name, "generated", began)
    (out / "result.json").write_text(json.dumps(result), "utf-8")


def trained(config: DiffusionConfig, out: Path, times: int) -> tuple[DiffusionTask, Tensor]:
    """The training of a recipe with the averaged weights of a finished run, and times."""
    task = task_of(config, out / "task")
    task.model.unet.load_state_dict(undust.load(out / "model").unet.state_dict())
    task.modules.eval()
    return task, times_of(task, times)


def times_of(task: DiffusionTask, count: int) -> Tensor:
    """Whole time steps over the whole range, float64."""
    return torch.linspace(*task.model.process.time_range, count, dtype=torch.float64).round()


def draws(
    task: DiffusionTask, order: SampleOrder, first: int, count: int, size: int = 97
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batches of an order's places with their latents and noise."""
    for start in range(first, first + count, size):
        batch = order.draws(range(start, min(start + size, first + count)), 0)
        z = task.latents.sample(batch)
        yield batch, z, batch.normal(RandomStream.NOISE, z.shape[1:])


@torch.no_grad()
def errors(task: DiffusionTask, times: Tensor, count: int) -> dict[str, Any]:
    """Over the times: mean squared errors of x0 and ε, the own loss and its deviation.

    From the denoiser's estimate of x0 on all held-out latents; the deviation is that over samples.
    An estimate of x0 is one of ε = (x − x0)/σ, and of each target.
    """
    order = task.validation
    assert order
    process, prediction = task.model.process, task.denoise.prediction
    rows: dict[str, list[float]] = {name: [] for name in ("x0_error", "epsilon_error")}
    rows |= {"loss": [], "loss_deviation": []}
    parts = [*draws(task, order, 0, count * len(order.groups))]
    for sigma in process.sigma(times):
        level, found = sigma.float(), list[Tensor]()
        for batch, z, noise in parts:
            cond = task.samples.conditioning(task.model, batch)
            estimate = task.denoise(z + level * noise, level.expand(len(batch)), cond)
            found.append((estimate - z).square().mean((1, 2, 3)).double())
        error = torch.cat(found)
        loss = error / prediction.scale(sigma) ** 2
        rows["x0_error"].append(error.mean().item())
        rows["epsilon_error"].append((error / sigma**2).mean().item())
        rows["loss"].append(loss.mean().item())
        rows["loss_deviation"].append(loss.std().item())
    return rows


def gradients(task: DiffusionTask, times: Tensor) -> dict[str, Any]:
    """Of the own loss in all weights: over the times its norm, and its deviation over samples.

    At each time the gradients g of PARTS batches of PART new samples have the mean square
    |G|² + tr(Σ)/PART, of which the unbiased |G|² and tr(Σ) are told by their products: G is the
    expected gradient and Σ the covariance of one sample's. gradient_noise_scale is tr(Σ)/|G|² of
    the gradient over all times (McCandlish et al. 2018, eq. 2.9): the batch size at which a
    step's noise is as large as its signal.
    """
    weights = [*task.modules.parameters()]
    norms, traces, means = list[float](), list[float](), list[Tensor]()
    for k, sigma in enumerate(task.model.process.sigma(times)):
        squares, total = 0.0, torch.zeros(())
        first = UNSEEN + k * PARTS * PART
        for batch, z, noise in draws(task, task.order, first, PARTS * PART, PART):
            cond = task.samples.conditioning(task.model, batch)
            loss = task.denoise.loss(z, noise, sigma.expand(len(batch)), cond).mean()
            flat = torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)])
            squares += flat.square().sum().item() / PARTS
            total = total + flat / PARTS
        norm = (PARTS * total.square().sum().item() - squares) / (PARTS - 1)
        norms.append(norm)
        traces.append(PART * (squares - norm))
        means.append(total)
    count = len(means)
    own = sum(mean.square().sum().item() for mean in means)
    whole = (sum(means, torch.zeros(())).square().sum().item() - own + sum(norms)) / count**2
    trace = statistics.fmean(traces) + statistics.fmean(norms) - whole
    return {
        "gradient_norm": [math.sqrt(max(0.0, norm)) for norm in norms],
        "gradient_deviation": [math.sqrt(max(0.0, trace)) for trace in traces],
        "gradient_noise_scale": trace / whole,
    }


def training_figures(log: Path, clip: float) -> dict[str, Any]:
    """Of a run's log: the curve of its loss, its roughness, and the validation losses.

    roughness: the deviation of log(loss/running mean) in the second half of the steps, with the
    mean of WINDOW losses around each; gradient_roughness: the same of the gradient's norm; clipped:
    the share of all steps whose gradient was clipped.
    """
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    losses, norms = ([row[key] for row in rows] for key in ("loss", "gradient_norm"))
    smooth, rough = relative(losses)
    validation = [row for row in rows if "validation_loss" in row]
    places = [round(k * (len(rows) - 1) / (CURVE - 1)) for k in range(CURVE)]
    half = len(rows) // 2
    return {
        "roughness": statistics.pstdev(rough[half:]),
        "gradient_roughness": statistics.pstdev(relative(norms)[1][half:]),
        "clipped": sum(norm > clip for norm in norms) / len(norms),
        "curve_step": [rows[k]["step"] for k in places],
        "curve_loss": [smooth[k] for k in places],
        "validation_step": [row["step"] for row in validation],
        "validation_loss": [row["validation_loss"] for row in validation],
    }


def relative(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The running means of values, and the logarithms of the values divided by them."""
    side = WINDOW // 2
    smooth = [statistics.fmean(values[max(0, k - side) : k + side + 1]) for k in range(len(values))]
    return smooth, [math.log(one / mean) for one, mean in zip(values, smooth, strict=True)]


def data_figures(task: DiffusionTask, times: Tensor) -> dict[str, Any]:
    """Over the times: σ, SNR, and mean and variance of each target in the held-out latents.

    explained: the share of a target's variance that its mean over samples, a fixed latent, has.
    """
    order, process = task.validation, task.model.process
    assert order
    parts = [*draws(task, order, 0, 8 * len(order.groups))]
    z, noise = (torch.cat([part[k] for part in parts]).double() for k in (1, 2))
    sigmas = process.sigma(times)
    targets: dict[str, Any] = {}
    for name in NAMES:
        found = [PREDICTIONS[name].target(z, noise, sigma) for sigma in sigmas]
        targets[name] = {
            "mean": [each.mean().item() for each in found],
            "variance": [each.var().item() for each in found],
            "explained": [(each.mean(0).var() / each.var()).item() for each in found],
        }
    return {
        "t": times.long().tolist(),
        "sigma": sigmas.tolist(),
        "snr": sigmas.pow(-2).tolist(),
        "latents": {
            "count": len(order.groups),
            "mean": z.mean().item(),
            "variance": z.var().item(),
        },
        "targets": targets,
    }


def about(
    given: argparse.Namespace, task: DiffusionTask, planned: dict[str, Any]
) -> dict[str, Any]:
    """The origin of the figures."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"OMP_NUM_THREADS=1 python benchmarks/predictions.py --data data/emoji-64 "
        f"--minutes {given.minutes:g} --seeds {given.seeds}",
        "recipe": f"recipes/{RECIPE.name}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "weights": sum(each.numel() for each in task.model.unet.parameters()),
        "pictures": len(task.data.train),
        "held_out": len(task.data.held_out),
        "batch": task.config.run.batch,
        "minutes": given.minutes,
        **planned,
        "seeds": [*range(given.seeds)],
        "draws": given.draws,
        "gradient_samples": PARTS * PART,
        "generated": given.pictures,
        "compared": given.real,
        "sampling_steps": given.steps,
    }


def compact(result: Any) -> str:
    """JSON with numbers of four digits and a line for each list."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        if isinstance(value, list):
            return [rounded(each) for each in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    text = json.dumps(rounded(result), indent=1, ensure_ascii=False)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def say(name: str, step: int, steps: int) -> None:
    if step == steps or step % 100 == 0:
        print(f"{name}: {step} of {steps} steps", flush=True)


def say_seconds(name: str, what: str, began: float) -> None:
    print(f"{name}: {what}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
