"""Part 1, the first stage: what a latent keeps, what noise does to it, and why it is a range."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.explain.bands import bands
from undust.explain.effect import Effect
from undust.explain.figures import Figure, Frames
from undust.explain.measures import decibels, edges, root_mean_square
from undust.explain.result import PartResult
from undust.explain.setup import Setup
from undust.latent.first_stage import Posterior

CHANNELS = 16  # shown at most
LEVELS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0)  # noise ÷ deviation of the data
WIDTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # of the posterior, in deviations
WAY = 10  # steps between two pictures
CELLS = 4  # of the grid whose means are the layout, along a side


@torch.inference_mode()
def show(setup: Setup) -> PartResult:
    """The part of this model; UndustError for one that works on pixels."""
    setup.check_latents()
    say = setup.say("first-stage")
    posterior = setup.model.first_stage.encode(setup.pictures)
    figures: list[Figure] = [channels(setup, posterior), noisy(setup)]
    decoded, ways = setup.model.decode(posterior.mean), halfway(setup, posterior.mean)
    kept, less = decibels(decoded, setup.pictures), decibels(shrunk(setup), setup.pictures)
    effects = [Effect("shrunk", say("shrunk"), less.tolist(), kept.tolist(), "lower", 1)]
    if bool(posterior.deviation.any()):  # of VQ models it is 0
        figures.append(ranges(setup, posterior))
        effects += of_ranges(setup, posterior, decoded)
    faded, mixed = (edges(way).tolist() for way in ways)
    effects.append(Effect("crossfade", say("crossfade"), faded, mixed, "lower", 3))
    numbers = {
        "numbers_of_a_picture": setup.pictures[0].numel(),
        "numbers_of_a_latent": posterior.mean[0].numel(),
        "round_trip_decibels": kept.tolist(),
        "posterior_deviation": posterior.deviation.mean((0, 2, 3)).tolist(),
        "channel_deviation": posterior.mean.std((0, 2, 3)).tolist(),
    }
    return PartResult([*figures, between(setup, posterior.mean)], effects, numbers)


def shrunk(setup: Setup) -> Tensor:
    """The real pictures by as many numbers as their latents have: smaller, and enlarged again.

    Each pixel of the smaller picture is the mean of its place. There are slightly more numbers than
    in a latent, so that both sides are whole.
    """
    count, (colours, height, width) = setup.latents[0].numel(), setup.pictures.shape[1:]
    scale = math.sqrt(count / (colours * height * width))
    small = F.adaptive_avg_pool2d(
        setup.pictures, (math.ceil(height * scale), math.ceil(width * scale))
    )
    return F.interpolate(small, (height, width), mode="bicubic")


def moved(posterior: Posterior, width: float, noise: Tensor, *, even: bool) -> Tensor:
    """The latents, moved by noise [N, C, h, w] of `width` times the posterior's deviations.

    even: of the same root mean square in each picture, but spread evenly over all its numbers.
    """
    shaped = posterior.deviation * noise
    if even:
        ratio = root_mean_square(shaped) / root_mean_square(noise)
        shaped = ratio.reshape(-1, 1, 1, 1) * noise
    return posterior.mean + width * shaped


def of_ranges(setup: Setup, posterior: Posterior, decoded: Tensor) -> list[Effect]:
    """What moving a latent within its range does to its picture `decoded` [N, 3, H, W]."""
    say, noise = setup.say("first-stage"), setup.noise(posterior.mean, 1)
    own, even = (setup.model.decode(moved(posterior, 1, noise, even=e)) for e in (False, True))
    layout, detail = (
        (100 * root_mean_square(change) / root_mean_square(whole).clamp_min(1e-6)).tolist()
        for change, whole in zip(
            bands(own - decoded, [CELLS]),
            bands(decoded - decoded.mean(0), [CELLS]),
            strict=True,
        )
    )
    a, b = (decibels(pictures, decoded).tolist() for pictures in (even, own))
    return [
        Effect("even_noise", say("even_noise"), a, b, "lower", 1),
        Effect("detail_varies", say("detail_varies"), detail, layout, "higher", 1),
    ]


def halfway(setup: Setup, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Halfway between each real picture and the next: the mean of both, and that of the latents.

    Of the pictures as the first stage decodes them, so that both begin and end at the same ones.
    """
    pictures = setup.model.decode(latents)
    mixed = setup.model.decode((latents + latents.roll(-1, 0)) / 2)
    return (pictures + pictures.roll(-1, 0)) / 2, mixed


def channels(setup: Setup, posterior: Posterior) -> Frames:
    """Each channel of the latents as grey maps, below the pictures."""
    say, n = setup.say("first-stage"), setup.shown
    pictures, latents = setup.pictures[:n], posterior.mean[:n]
    count = min(latents.shape[1], CHANNELS)
    images = []
    for number in range(count):
        own = posterior.mean[:, number]
        grey = (latents[:, number : number + 1] - own.mean()) / (2 * own.std()).clamp_min(1e-6)
        maps = F.interpolate(grey, pictures.shape[2:]).expand_as(pictures)
        images.append(setup.row(torch.cat([pictures, maps]), n))
    widths, spread = posterior.deviation.mean((0, 2, 3)), posterior.mean.std((0, 2, 3))
    labels = [
        say(
            "channel",
            n=k + 1,
            of=latents.shape[1],
            width=f"{widths[k]:.2f}",
            spread=f"{spread[k]:.2f}",
        )
        for k in range(count)
    ]
    whole, small = pictures[0].numel(), latents[0].numel()
    return Frames(
        say("channels"),
        labels,
        images,
        say("channels_alt"),
        note=say(
            "channels_note", pixels=f"{whole:,}", latent=f"{small:,}", times=f"{whole / small:.3g}"
        ),
    )


def noisy(setup: Setup) -> Frames:
    """Noise of the same strength on pixels, above, and on latents, below."""
    say, n = setup.say("first-stage"), setup.shown
    images = [
        setup.row(torch.cat([each[:n] for each in noised_both(setup, level)]), n)
        for level in LEVELS
    ]
    labels = [say("noise", level=f"{level:g}") for level in LEVELS]
    start = LEVELS.index(0.5)
    return Frames(
        say("noisy"), labels, images, say("noisy_alt"), start=start, note=say("noisy_note")
    )


def noised_both(setup: Setup, level: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The real pictures with noise on their pixels, and with noise on their latents, decoded.

    level: of the noise, in deviations of all pixels or latents.
    """
    latents = noised(setup.latents, level, setup.noise(setup.latents, seed))
    pixels = noised(setup.pictures, level, setup.noise(setup.pictures, seed))
    return pixels, setup.model.decode(latents)


def noised(x: Tensor, level: float, noise: Tensor) -> Tensor:
    """Values x [N, …] under noise of `level` deviations of all x, scaled back to their variance."""
    spread, middle = x.std(), x.mean()
    return middle + (x - middle + level * spread * noise) / math.sqrt(1 + level**2)


def ranges(setup: Setup, posterior: Posterior) -> Frames:
    """The pictures of latents within and beyond their range, and below them with even noise."""
    say, n = setup.say("first-stage"), setup.shown
    few = Posterior(posterior.mean[:n], posterior.deviation[:n])
    noise = setup.noise(posterior.mean, 1)[:n]
    images = [
        setup.row(
            torch.cat(
                [setup.model.decode(moved(few, width, noise, even=e)) for e in (False, True)]
            ),
            n,
        )
        for width in WIDTHS
    ]
    labels = [say("width", width=f"{width:g}") for width in WIDTHS]
    start = WIDTHS.index(1.0)
    return Frames(
        say("range"), labels, images, say("range_alt"), start=start, note=say("range_note")
    )


def between(setup: Setup, latents: Tensor) -> Frames:
    """From each picture to the next: faded pixel by pixel, and below them decoded."""
    say, n = setup.say("first-stage"), setup.shown
    first, last = latents[:n], latents.roll(-1, 0)[:n]
    ends = setup.model.decode(first), setup.model.decode(last)
    parts = [step / WAY for step in range(WAY + 1)]
    images = [
        setup.row(
            torch.cat([torch.lerp(*ends, part), setup.model.decode(torch.lerp(first, last, part))]),
            n,
        )
        for part in parts
    ]
    labels = [say("part", percent=f"{100 * part:.0f}") for part in parts]
    return Frames(
        say("between"), labels, images, say("between_alt"), start=WAY // 2, note=say("between_note")
    )
