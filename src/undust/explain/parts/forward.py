"""Part 2, forward diffusion: noise that is recorded, and one hard problem as many easy ones."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from undust.diffusion.process import Process
from undust.explain.effect import Effect
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.measures import edges, root_mean_square
from undust.explain.result import PartResult
from undust.explain.setup import Setup

SPLIT = 32  # steps at most, a power of 2
SHOWN = 12  # noise levels in the figure
TIMES = 50  # of the chart of the process
OWN, WRONG = 0, 1  # seeds of the recorded noise and of another


@torch.inference_mode()
def show(setup: Setup) -> PartResult:
    """The part of this model."""
    say, process, unit = setup.say("forward"), setup.model.process, setup.latents.std().item()
    levels = spaced(process, unit, SPLIT)
    own = torch.stack([errors(setup, level) for level in levels], 1)
    guess = torch.stack([linear_errors(setup, level) for level in levels], 1)
    splits = [2**power for power in range(SPLIT.bit_length())]
    hardest = torch.stack([hardest_step(own, levels, unit, n) for n in splits], 1)
    equal = min(max(unit, process.sigma_min), process.sigma_max)  # as much noise as signal
    right, wrong = (recovered(setup, equal, seed) for seed in (OWN, WRONG))
    finest = setup.model.decode(setup.latents)
    at_once = setup.model.decode(setup.estimate(under_noise(setup, levels[-1]), levels[-1]))
    effects = [
        Effect("other_noise", say("other_noise"), wrong.tolist(), right.tolist(), "higher", 6),
        Effect(
            "at_once",
            say("at_once", n=SPLIT),
            hardest[:, 0].tolist(),
            hardest[:, -1].tolist(),
            "higher",
        ),
        Effect("blur", say("blur"), edges(at_once).tolist(), edges(finest).tolist(), "lower", 3),
        Effect(
            "no_network",
            say("no_network"),
            (linear_errors(setup, equal) / unit).tolist(),
            (errors(setup, equal) / unit).tolist(),
            "higher",
        ),
    ]
    numbers = {
        "sigma": levels,
        "time": process.time(torch.tensor(levels, dtype=torch.float64)).tolist(),
        "error_of_the_network": (own / unit).mean(0).tolist(),
        "error_of_the_linear_guess": (guess / unit).mean(0).tolist(),
        "error_of_recovery": [recovered(setup, level, OWN).mean().item() for level in levels],
    }
    figures = [
        forward_and_back(setup, levels),
        known(setup, levels, own / unit, guess / unit),
        split(setup, splits, hardest),
        signal(setup),
    ]
    return PartResult(figures, effects, numbers)


def spaced(process: Process, unit: float, steps: int) -> list[float]:
    """Noise levels σ from the first to the last time, steps + 1 of them.

    Even in the angle whose tangent is σ over `unit`, the deviation of the latents: 0 is a picture
    without noise, a right angle noise without a picture. A process's own times may be anything.
    """
    first, last = (math.atan(level / unit) for level in (process.sigma_min, process.sigma_max))
    inner = [math.tan(first + (last - first) * k / steps) * unit for k in range(1, steps)]
    return [process.sigma_min, *inner, process.sigma_max]


def under_noise(setup: Setup, level: float) -> Tensor:
    """The real pictures' latents under noise, x = x0 + σ·n [N, C, h, w]."""
    return setup.latents + level * setup.noise(setup.latents, OWN)


def errors(setup: Setup, level: float) -> Tensor:
    """Root mean square [N] of what the network's estimate of x0 misses, for no prompt."""
    return root_mean_square(setup.estimate(under_noise(setup, level), level) - setup.latents)


def linear_errors(setup: Setup, level: float) -> Tensor:
    """The same of the best linear guess: each channel drawn to its mean (Wiener 1949).

    It knows means and variances of the channels, of these very pictures, and no shapes.
    """
    over = (0, 2, 3)
    middle = setup.latents.mean(over, keepdim=True)
    variance = setup.latents.var(over, keepdim=True)
    kept = variance / (variance + level**2)
    guess = middle + kept * (under_noise(setup, level) - middle)
    return root_mean_square(guess - setup.latents)


def recovered(setup: Setup, level: float, seed: int) -> Tensor:
    """The error [N] of x0 = (x_t − s·ε)/α with the noise of a seed, in deviations of the latents.

    x_t = α·x0 + s·ε is the process's own, with the noise of the seed `OWN`, in float32.
    """
    process, latents = setup.model.process, setup.latents
    time = process.time(torch.tensor(level, dtype=torch.float64))
    alpha, std = process.alpha(time).item(), process.std(time).item()
    x = alpha * latents + std * setup.noise(latents, OWN)
    back = (x - std * setup.noise(latents, seed)) / alpha
    return root_mean_square(back - latents) / latents.std()


def hardest_step(own: Tensor, levels: list[float], unit: float, steps: int) -> Tensor:
    """The largest error [N] of a step from one level to the next, if there are `steps` of them.

    own: of the estimates of x0 [N, levels]. The step from σ to s ends in x0 + s·(x − x0)/σ, so an
    error of x0 is one of 1 − s/σ times its size there. It is given in deviations of noisy latents
    at s. The noise on the way is that of one draw, and each step starts at its true place.
    """
    width = (len(levels) - 1) // steps
    found = [
        own[:, k] * (1 - levels[k - width] / levels[k]) / math.hypot(unit, levels[k - width])
        for k in range(width, len(levels), width)
    ]
    return torch.stack(found).amax(0)


def forward_and_back(setup: Setup, levels: list[float]) -> Frames:
    """Noisy latents, decoded, and below them the estimates of x0 from each."""
    say, n, process = setup.say("forward"), setup.shown, setup.model.process
    unit = setup.latents.std().item()
    images, labels = list[Image.Image](), list[str]()
    shown = [levels[round(k * (len(levels) - 1) / (SHOWN - 1))] for k in range(SHOWN)]
    for level in shown:
        x = under_noise(setup, level)[:n]
        scaled = x * (unit / math.hypot(unit, level))
        both = torch.cat([setup.model.decode(each) for each in (scaled, setup.estimate(x, level))])
        images.append(setup.row(both, n))
        time = process.time(torch.tensor(level, dtype=torch.float64)).item()
        labels.append(say("level", time=_short(time), ratio=_short((unit / level) ** 2)))
    return Frames(
        say("steps"), labels, images, say("steps_alt"), start=SHOWN // 2, note=say("steps_note")
    )


def known(setup: Setup, levels: list[float], own: Tensor, guess: Tensor) -> LineChart:
    """The error of x0 over the noise level: of the network's estimate, and of a linear guess."""
    say, unit = setup.say("forward"), setup.latents.std().item()
    ends = [k for k, level in enumerate(levels) if level / unit < 1e3]  # not the infinite one
    x = [levels[k] / unit for k in ends]
    lines = [
        Line(
            say(name),
            x,
            each[:, ends].mean(0).tolist(),
            each[:, ends].std(0).tolist(),
            markers=False,
        )
        for name, each in (("by_network", own), ("by_guess", guess))
    ]
    return LineChart(
        say("known"), say("noise"), say("error"), lines, log_x=True, note=say("known_note")
    )


def split(setup: Setup, splits: list[int], hardest: Tensor) -> LineChart:
    """The error of the hardest step over the number of steps."""
    say = setup.say("forward")
    line = Line(say("hardest"), splits, hardest.mean(0).tolist(), hardest.std(0).tolist())
    return LineChart(
        say("split"), say("number"), say("step_error"), [line], log_x=True, note=say("split_note")
    )


def signal(setup: Setup) -> LineChart:
    """Signal to noise over the time of the model's process."""
    say, process, unit = setup.say("forward"), setup.model.process, setup.latents.std().item()
    first, last = process.time_range
    times = [first + (last - first) * k / (TIMES - 1) for k in range(TIMES)]
    ratios = [(unit / process.sigma(time).item()) ** 2 for time in times]
    kept = [k for k, ratio in enumerate(ratios) if ratio > 1e-6]  # a process may end in noise alone
    line = Line(say("ratio"), [times[k] for k in kept], [ratios[k] for k in kept], markers=False)
    return LineChart(say("process"), say("time"), say("ratio"), [line], log_y=True)


def _short(number: float) -> str:
    """Three digits, or all of a whole number."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
