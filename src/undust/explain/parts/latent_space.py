"""Part 9, the latent space: a photo edited against a plan changed, and what each costs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from undust.explain.bands import bands
from undust.explain.effect import Effect
from undust.explain.figures import Frames, Line, LineChart, TextTable
from undust.explain.measures import correlation, edges
from undust.explain.parts.first_stage import noised_both
from undust.explain.result import PartResult
from undust.explain.setup import ROW, Setup
from undust.formats.components import new_denoiser
from undust.latent.denoiser import PlacedNetwork
from undust.pictures import to_images
from undust.regular import read_text

RESULTS = Path(__file__).parents[1] / "results" / "pixels_and_latents.json"
STRENGTHS = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0)  # of edits
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # noise ÷ deviation of the data
CELLS = 4  # of the grid whose means are the layout, along a side
LARGE = 100_000_000  # weights from which on a call on pixels is not timed


@torch.inference_mode()
def show(setup: Setup) -> PartResult:
    """The part of this model; UndustError as `check_latents` and `check_inputs` have it."""
    setup.check_latents()
    setup.check_inputs()
    say = setup.say("latent-space")
    edited, faded = edits(setup)
    middle = 1 + STRENGTHS.index(0.5)
    kept = [likeness(setup, level) for level in LEVELS]
    on_pixels, on_latents = kept[LEVELS.index(1.0)][:, 0].tolist()
    share = [layout_share(a - b).tolist() for a, b in zip(*two_draws(setup), strict=True)]
    seconds, work = timed(setup), [operations(setup, pixels=each) for each in (False, True)]
    effects = [
        Effect(
            "fade",
            say("fade"),
            edges(faded[middle]).tolist(),
            edges(edited[middle]).tolist(),
            "lower",
            3,
        ),
        Effect("layout_kept", say("layout_kept"), on_pixels, on_latents, "higher"),
        Effect("layout_share", say("layout_share"), share[0], share[1], "lower", 1),
    ]
    if seconds:
        effects.append(Effect("seconds", say("seconds"), seconds[1], seconds[0], "higher", 3))
    numbers = {"operations_on_latents": work[0], "operations_on_pixels": work[1]}
    figures = [
        edit_frames(setup, edited, faded),
        structure(setup, kept),
        costs(setup, seconds, work),
        trained(setup),
    ]
    return PartResult(figures, effects, numbers)


def edits(setup: Setup) -> tuple[list[Tensor], list[Tensor]]:
    """A real picture for each seed on the way to the seed's prompt [seeds, 3, H, W].

    For no change and each of `STRENGTHS`: noise on the latents, removed by the model; and pixels
    faded to the picture of the last strength.
    """
    # From the second one on: the first prompt may be that of the first picture.
    chosen = setup.pictures[[(k + 1) % len(setup.pictures) for k in range(len(setup.seeds))]]
    first = setup.model.decode(setup.model.encode(chosen))
    edited = [first, *(edited_by(setup, chosen, strength) for strength in STRENGTHS)]
    faded = [torch.lerp(first, edited[-1], strength) for strength in (0.0, *STRENGTHS)]
    return edited, faded


def edited_by(setup: Setup, pictures: Tensor, strength: float) -> Tensor:
    """Image-to-image generation from pictures [seeds, 3, H, W], one with each prompt and seed."""
    found: list[Tensor] = []
    for image, prompt, seed in zip(to_images(pictures), setup.prompts, setup.seeds, strict=True):
        *_, last = setup.model.steps(
            prompt,
            seed=seed,
            init=image,
            strength=strength,
            steps=setup.steps,
            guidance=setup.guidance,
        )
        found.append(last.decode(last.x))
    return torch.cat(found)


def likeness(setup: Setup, level: float) -> Tensor:
    """The correlation of noisy pictures with those without noise [2, 2, N].

    Noise on pixels and noise on latents; of the layout and of the detail; of each real picture.
    """
    clean = (setup.pictures, setup.model.decode(setup.latents))
    found = [
        correlation(a, b)
        for noisy, own in zip(noised_both(setup, level), clean, strict=True)
        for a, b in zip(bands(noisy, [CELLS]), bands(own, [CELLS]), strict=True)
    ]
    return torch.stack(found).unflatten(0, (2, 2))


def two_draws(setup: Setup) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The real pictures under two draws of noise as strong as they: each on pixels, on latents."""
    return noised_both(setup, 1, 0), noised_both(setup, 1, 1)


def layout_share(change: Tensor) -> Tensor:
    """The percentage of the squares of a change [N, 3, H, W] that is in its layout: [N].

    Of white noise it is that of the number of cells in the number of pixels.
    """
    layout, detail = (each.square().flatten(1).sum(1) for each in bands(change, [CELLS]))
    return 100 * layout / (layout + detail)


def timed(setup: Setup) -> tuple[list[float], list[float]] | None:
    """Seconds of a call of the network for each seed: on a latent, and on one of a picture's size.

    None for a model with more than `LARGE` weights.
    """
    if sum(weight.numel() for weight in setup.model.unet.parameters()) > LARGE:
        return None
    shapes = [input_shape(setup, pixels=each) for each in (False, True)]
    once(setup, shapes[0])
    latents, pictures = ([once(setup, shape) for _ in setup.seeds] for shape in shapes)
    return latents, pictures


def once(setup: Setup, shape: tuple[int, ...]) -> float:
    """Seconds of one call of the denoiser for no prompt, with noise of that shape."""
    cond, x = setup.model.condition([None]), setup.noise(torch.empty(shape), 0)
    sigma = torch.ones(1, dtype=torch.float64)
    start = time.perf_counter()
    setup.model.denoise(x, sigma, cond)
    return time.perf_counter() - start


def input_shape(setup: Setup, *, pixels: bool) -> tuple[int, ...]:
    """[1, C, h, w] of a latent, or of a grid of a picture's size with the latent's channels."""
    place = setup.pictures if pixels else setup.latents
    return 1, setup.latents.shape[1], *place.shape[2:]


def operations(setup: Setup, *, pixels: bool) -> int:
    """Multiplications and additions of a call's products and convolutions, without computing it."""
    with torch.device("meta"):
        network = new_denoiser(setup.model.unet.config)
        x, step = torch.empty(input_shape(setup, pixels=pixels)), torch.ones(1)
    placed = PlacedNetwork(network, self_conditioned=setup.model.self_conditioned)
    cond = setup.model.condition([None]).to(torch.device("meta"), torch.float32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        placed(x, step, cond)
    return counted.get_total_flops()


def edit_frames(setup: Setup, edited: list[Tensor], faded: list[Tensor]) -> Frames:
    """From the real pictures to the prompts: faded, and below them edited by the model."""
    say, strengths = setup.say("latent-space"), (0.0, *STRENGTHS)
    n = min(len(setup.seeds), ROW)
    images = [
        setup.row(torch.cat([upper[:n], lower[:n]]), n)
        for upper, lower in zip(faded, edited, strict=True)
    ]
    labels = [say("strength", percent=f"{100 * each:.0f}") for each in strengths]
    start = strengths.index(0.5)
    return Frames(
        say("edits"), labels, images, say("edits_alt"), start=start, note=say("edits_note")
    )


def structure(setup: Setup, kept: list[Tensor]) -> LineChart:
    """The likeness of layout and detail over the noise level, by `likeness` at each."""
    say = setup.say("latent-space")
    lines = list[Line]()
    for place, noise in enumerate(("pixels", "latents")):
        for part, name in enumerate(("layout", "detail")):
            values = torch.stack([each[place, part] for each in kept])
            mean, spread = values.mean(1).tolist(), values.std(1).tolist()
            lines.append(Line(say(f"{name}_{noise}"), LEVELS, mean, spread))
    return LineChart(
        say("structure"),
        say("level"),
        say("correlation"),
        lines,
        log_x=True,
        note=say("structure_note"),
    )


def costs(
    setup: Setup, seconds: tuple[list[float], list[float]] | None, work: list[int]
) -> TextTable:
    """The size and the cost of a call on latents and on pixels."""
    say, common = setup.say("latent-space"), setup.latents[0]
    places = [common[0].numel(), setup.pictures[0, 0].numel()]
    rows = [
        [say("numbers"), *_compared([common.numel(), setup.pictures[0].numel()])],
        [say("places"), *_compared(places)],
        [say("pairs"), *_compared([count**2 for count in places])],
        [say("operations"), *_compared([each / 1e9 for each in work])],
    ]
    if seconds:
        rows.append([say("call"), *_compared([sorted(each)[len(each) // 2] for each in seconds])])
    columns = ["", say("on_latents"), say("on_pixels"), say("times")]
    return TextTable(say("costs"), columns, rows, say("costs_note"))


def _compared(values: Sequence[float]) -> list[str]:
    """Two numbers and how many times the second one is the first."""
    low, high = (f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in values)
    return [low, high, f"{values[1] / values[0]:,.1f}"]


def trained(setup: Setup) -> TextTable:
    """The result of a stored run: denoisers that were trained on pixels and on latents."""
    say, stored = setup.say("latent-space"), json.loads(read_text(RESULTS))
    rows = [
        [
            say(row["name"]),
            f"{row['steps']:,}",
            f"{row['training_pictures_per_second']:g}",
            f"{row['sampling_pictures_per_second']:g}",
            f"{row['training_memory_gib']:g}",
            f"{row['frechet_distance']:g}",
        ]
        for row in stored["rows"]
    ]
    columns = ["", *map(say, ("steps", "training", "sampling", "memory", "distance"))]
    names = (
        "minutes",
        "sampling_steps",
        "processor",
        "threads",
        "precision",
        "document",
        "command",
    )
    note = say("trained_note", **{name: stored[name] for name in names})
    return TextTable(say("trained"), columns, rows, note)
