"""Part 5, the time embedding: what it is, and networks that are told a wrong time step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.adapters.ablation import as_unet, changed, timesteps
from undust.explain.denoising_error import denoising_errors, used_levels
from undust.explain.effect import Effect
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.result import PartResult
from undust.explain.setup import NetworkChange, Setup
from undust.explain.trace_pictures import heat_picture
from undust.networks.layers import sinusoids
from undust.networks.stored import computes_in

SHOWN = 288  # pixels, the side of a heat map
FROZEN = {"early": 0.85, "middle": 0.5, "late": 0.15}  # of the range of times; the last is noise
SHIFT = 0.15  # of the range of time steps
RESOLUTION = 96  # time steps in a heat map
NEAR, FAR = 0.05, 0.5  # distances of two times, of the range
COMPARED = 10  # times whose neighbours are compared


def show(setup: Setup) -> PartResult:
    """The part of this model."""
    say = setup.say("time-embedding")
    told = {name: told_at(setup, part) for name, part in FROZEN.items()}
    names = {name: say(name, t=f"{step:.3g}") for name, step in told.items()}
    frozen = {name: setup.sample(always(step)).pictures for name, step in told.items()}
    first, last = step_range(setup)
    shift = SHIFT * (last - first)
    shifted = {
        say(name, n=f"{shift:.3g}"): setup.sample(later(sign * shift, first, last)).pictures
        for name, sign in (("noisier", 1), ("cleaner", -1))
    }
    drawn = {
        say("right"): setup.baseline.pictures,
        **{names[name]: pictures for name, pictures in frozen.items()},
        **shifted,
    }
    buttons = Frames(
        say("pictures"),
        [*drawn],
        [setup.row(pictures) for pictures in drawn.values()],
        say("pictures_alt"),
        "buttons",
        note=say("pictures_note"),
    )
    levels = used_levels(setup)
    found = {say("told_right"): denoising_errors(setup, levels)}
    for name, step in told.items():
        found[names[name]] = denoising_errors(setup, levels, always(step))
    chart = LineChart(
        say("errors"),
        say("level"),
        say("error"),
        [
            Line(name, levels, own.mean(0).tolist(), own.std(0).tolist())
            for name, own in found.items()
        ],
        log_x=True,
        log_y=True,
        note=say("errors_note"),
    )
    waves, learnt = (nearness(rows) for rows in embeddings(setup, compared_times()))
    effects = [
        Effect(
            "error_frozen_middle",
            say("error_frozen_middle"),
            found[names["middle"]].mean(1).tolist(),
            found[say("told_right")].mean(1).tolist(),
            "higher",
            3,
        ),
        Effect(
            "detail_told_early",
            say("detail_told_early"),
            detail(frozen["early"]),
            detail(setup.baseline.pictures),
            "lower",
            3,
        ),
        Effect(
            "layout_told_late",
            say("layout_told_late"),
            layout(frozen["late"]),
            layout(setup.baseline.pictures),
            "lower",
            3,
        ),
        Effect("stages_learnt", say("stages_learnt"), learnt, waves, "higher"),
    ]
    numbers = {
        "levels": levels,
        "errors": {name: own.mean(0).tolist() for name, own in found.items()},
        "told": told,
    }
    return PartResult([maps(setup), buttons, chart], effects, numbers)


def step_range(setup: Setup) -> tuple[float, float]:
    """The network's time steps for the least and for the most noise."""
    return told_at(setup, 0.0), told_at(setup, 1.0)


def told_at(setup: Setup, part: float) -> float:
    """The network's time step at a part of the range of times."""
    return _steps(setup, torch.tensor([part], dtype=torch.float64)).item()


def always(step: float) -> NetworkChange:
    """The same time step at any noise level."""
    return changed(timesteps(lambda given: torch.full_like(given, step)))


def later(shift: float, first: float, last: float) -> NetworkChange:
    """The right time step plus `shift`, between the first and the last one."""
    low, high = sorted((first, last))
    return changed(timesteps(lambda given: (given + shift).clamp(low, high)))


def detail(pictures: Tensor) -> list[float]:
    """The root mean square of what the means of a 16 × 16 grid leave of each picture."""
    return _spread(
        pictures - F.interpolate(F.adaptive_avg_pool2d(pictures, 16), pictures.shape[2:])
    )


def layout(pictures: Tensor) -> list[float]:
    """The root mean square of the means of a 4 × 4 grid, apart from each colour's mean."""
    cells = F.adaptive_avg_pool2d(pictures, 4)
    return _spread(cells - cells.mean((2, 3), keepdim=True))


def _spread(x: Tensor) -> list[float]:
    return x.square().flatten(1).mean(1).sqrt().tolist()


def maps(setup: Setup) -> Frames:
    """Sinusoids, learnt embedding, and how alike those of two time steps are."""
    say = setup.say("time-embedding")
    waves, learnt = embeddings(setup, torch.linspace(0, 1, RESOLUTION, dtype=torch.float64))
    shown: dict[str, Tensor] = {
        "waves": waves.T,
        "waves_alike": similarity(waves),
        "learnt_alike": similarity(learnt),
    }
    return Frames(
        say("maps"),
        [say(name) for name in shown],
        [heat_picture((values + 1) / 2, (SHOWN, SHOWN)) for values in shown.values()],
        say("maps_alt"),
        "buttons",
        start=2,
        note=say("maps_note"),
    )


@torch.inference_mode()
def embeddings(setup: Setup, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Of parts [T] of the range of times: sinusoids [T, C] and the learnt embedding [T, D]."""
    network = as_unet(setup.model.unet)
    config, dtype = network.config, computes_in(network)
    device = next(network.parameters()).device
    waves = sinusoids(
        _steps(setup, parts).to(device),
        config.block_out_channels[0],
        cos_first=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
    )
    return waves.float().cpu(), network.time_embedding(waves.to(dtype)).float().cpu()


def similarity(rows: Tensor) -> Tensor:
    """The cosines [T, T] of the rows [T, D], apart from their mean."""
    unit = F.normalize(rows - rows.mean(0), dim=1)
    return unit @ unit.T


def compared_times() -> Tensor:
    """Parts of the range: those to compare, then one near each, then one far from each."""
    own = torch.linspace(0, 1 - NEAR, COMPARED, dtype=torch.float64)
    return torch.cat([own, own + NEAR, torch.where(own < FAR, own + FAR, own - FAR)])


def nearness(rows: Tensor) -> list[float]:
    """Of the rows of `compared_times`: the cosine with the one near minus that with the one far."""
    own, near, far = (rows - rows.mean(0)).chunk(3)
    return (F.cosine_similarity(own, near) - F.cosine_similarity(own, far)).tolist()


def _steps(setup: Setup, parts: Tensor) -> Tensor:
    """The network's time steps at parts [T] of the range of times, float64."""
    process = setup.model.process
    first, last = process.time_range
    return process.timestep(process.sigma(first + parts * (last - first)))
