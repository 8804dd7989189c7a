"""Part 6, self-attention: where places look, and networks without it or with a small window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from undust.adapters.ablation import changed, local_self_attention, without_self_attention
from undust.adapters.capture import record_self_attention
from undust.errors import UndustError
from undust.explain.denoising_error import denoising_errors, used_levels
from undust.explain.effect import Effect
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.measures import correlation
from undust.explain.result import PartResult
from undust.explain.setup import NetworkChange, Setup
from undust.explain.trace_pictures import overlay
from undust.pictures import to_images

SHOWN = 256  # pixels, the side of a map
WINDOW = 1  # pixels on each side: a 3×3 convolution's
LOW, HIGH = 0.2, 5.0  # noise levels that are compared, in units of the latents' deviation
SEEN = (0.5, 1.0, 2.0)  # levels whose maps are averaged
CELLS = 8  # in each direction, of the places that look
HEIGHT = 0.45  # of the line of places that are shown, from the top: the eyes of a face
STRIPS = 4  # parts of the width, of which the first and the last are compared

CHANGES: dict[str, NetworkChange | None] = {
    "whole": None,
    "local": changed(local_self_attention(WINDOW)),
    "off": changed(without_self_attention),
}


def show(setup: Setup) -> PartResult:
    """The part of this model."""
    say = setup.say("self-attention")
    same = [setup.prompts[0]] * len(setup.seeds)
    faces = {name: setup.sample(change, same).pictures for name, change in CHANGES.items()}
    drawn = {
        name: torch.cat([(setup.sample(change) if change else setup.baseline).pictures, own])
        for (name, change), own in zip(CHANGES.items(), faces.values(), strict=True)
    }
    buttons = Frames(
        say("pictures"),
        [say(name) for name in drawn],
        [setup.row(pictures, len(setup.seeds)) for pictures in drawn.values()],
        say("pictures_alt"),
        "buttons",
        note=say("pictures_note", prompt=setup.prompts[0]),
    )
    levels = used_levels(setup)
    found = {name: denoising_errors(setup, levels, change) for name, change in CHANGES.items()}
    chart = LineChart(
        say("errors"),
        say("level"),
        say("error"),
        [
            Line(say(name), levels, own.mean(0).tolist(), own.std(0).tolist())
            for name, own in found.items()
        ],
        log_x=True,
        log_y=True,
        note=say("errors_note"),
    )
    reach = {name: far_influence(setup, change) for name, change in CHANGES.items()}
    rise = found["off"] / found["whole"]
    low, high = (nearest(levels, level) for level in (LOW, HIGH))
    across, down = mirrored(setup)
    effects = [
        Effect(
            "symmetry",
            say("symmetry", prompt=setup.prompts[0]),
            symmetry(faces["off"]),
            symmetry(faces["whole"]),
            "lower",
        ),
        Effect(
            "symmetry_local",
            say("symmetry_local", prompt=setup.prompts[0]),
            symmetry(faces["local"]),
            symmetry(faces["whole"]),
            "lower",
        ),
        Effect(
            "rise_at_high_noise",
            say("rise_at_high_noise", high=f"{levels[high]:g}", low=f"{levels[low]:g}"),
            rise[:, high].tolist(),
            rise[:, low].tolist(),
            "higher",
        ),
        Effect("mirrored_attention", say("mirrored_attention"), across, down, "higher"),
    ]
    numbers = {
        "levels": levels,
        "errors": {name: own.mean(0).tolist() for name, own in found.items()},
        "symmetry": {name: symmetry(pictures) for name, pictures in faces.items()},
        "far_influence": reach,
    }
    return PartResult([places_seen(setup), buttons, chart], effects, numbers)


def nearest(levels: Sequence[float], level: float) -> int:
    """The index of the level that is nearest."""
    return min(range(len(levels)), key=lambda place: abs(levels[place] - level))


def symmetry(pictures: Tensor) -> list[float]:
    """The correlation of each picture [B, 3, H, W] with its mirror image."""
    return correlation(pictures, pictures.flip(3)).tolist()


def far_influence(setup: Setup, change: NetworkChange | None) -> list[float]:
    """For each real picture, how far new noise at the right moves the estimate of x0 at the left.

    The root mean square of the change in the first strip, in units of the latents' deviation.
    """
    unit, width = setup.latents.std().item(), setup.latents.shape[3]
    strip = max(1, width // STRIPS)
    noise, other = setup.noise(setup.latents, 0), setup.noise(setup.latents, 1)
    redrawn = torch.cat([noise[..., :-strip], other[..., -strip:]], 3)
    level = unit * SEEN[-1]
    one, two = (
        setup.estimate(setup.latents + level * each, level, change)[..., :strip]
        for each in (noise, redrawn)
    )
    return ((two - one).square().flatten(1).mean(1).sqrt() / unit).tolist()


def mirrored(setup: Setup) -> tuple[list[float], list[float]]:
    """Attention to the mirrored place, left to right and top to bottom, for each real picture.

    1 is attention that is the same everywhere; the mean over all places, the layers with the most
    pixels and the noise levels `SEEN`.
    """
    grid = [((column + 0.5) / CELLS, (row + 0.5) / CELLS) for row, column in _cells()]
    layers = attention(setup, setup.latents, [None] * len(setup.latents), grid)
    cells = F.adaptive_avg_pool2d(torch.stack(layers).mean(0), CELLS)
    cells = cells / cells.mean((2, 3), keepdim=True)
    across = [cells[:, n, row, CELLS - 1 - column] for n, (row, column) in enumerate(_cells())]
    down = [cells[:, n, CELLS - 1 - row, column] for n, (row, column) in enumerate(_cells())]
    return torch.stack(across).mean(0).tolist(), torch.stack(down).mean(0).tolist()


def _cells() -> list[tuple[int, int]]:
    return [(row, column) for row in range(CELLS) for column in range(CELLS)]


def attention(
    setup: Setup,
    latents: Tensor,
    prompts: list[str | None],
    places: list[tuple[float, float]],
) -> list[Tensor]:
    """Where places of noisy latents look [B, Q, h, w], in each layer with the most pixels.

    The mean over the levels `SEEN`. Raises UndustError for a model without self-attention.
    """
    unit, noise = setup.latents.std().item(), setup.noise(latents, 0)
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, values: Tensor) -> None:
        found.setdefault(name, []).append(values.cpu())

    for level in SEEN:
        record = changed(record_self_attention(places, keep))
        setup.estimate(latents + unit * level * noise, unit * level, record, prompts)
    if not found:
        raise UndustError("self-attention: this model's network has none over pixels")
    pixels = {name: own[0][0, 0].numel() for name, own in found.items()}
    return [
        torch.stack(own).mean(0)
        for name, own in found.items()
        if pixels[name] == max(pixels.values())
    ]


def places_seen(setup: Setup) -> Frames:
    """On the first picture, where places on a line look in the last of the finest layers."""
    say = setup.say("self-attention")
    line = [((place + 0.5) / CELLS, HEIGHT) for place in range(CELLS)]
    *_, layer = attention(setup, setup.baseline.latents[:1], [setup.prompts[0]], line)
    (picture,) = to_images(setup.baseline.pictures[:1])
    picture = _enlarged(picture)
    return Frames(
        say("maps"),
        [say("place", percent=round(100 * x)) for x, _ in line],
        [_marked(overlay(picture, own), at) for own, at in zip(layer[0], line, strict=True)],
        say("maps_alt"),
        start=1,
        note=say("maps_note"),
    )


def _enlarged(image: Image.Image) -> Image.Image:
    factor = SHOWN / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def _marked(image: Image.Image, place: tuple[float, float]) -> Image.Image:
    """With a ring around a place."""
    x, y, radius = place[0] * image.width, place[1] * image.height, SHOWN / 24
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(box, outline="white", width=6)
    ImageDraw.Draw(image).ellipse(box, outline=(20, 60, 160), width=3)
    return image
