"""Part 4, the U-Net: its stages as maps, and its skip connections cut."""

from __future__ import annotations

from collections.abc import Collection

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from undust.adapters.ablation import as_unet, changed, record_stages, without_skips
from undust.explain.bands import bands
from undust.explain.effect import Effect
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.measures import correlation
from undust.explain.result import PartResult
from undust.explain.setup import Setup
from undust.pictures import to_images

SHOWN = 192  # pixels, the side of a map
LEVELS = (0.2, 0.5, 1.0, 2.0, 5.0)  # noise levels, in units of the latents' deviation


def show(setup: Setup) -> PartResult:
    """The part of this model."""
    say = setup.say("unet")
    skips = range(len(as_unet(setup.model.unet).skips))
    cuts = {say("all"): [], **{say("cut", n=n): [n] for n in skips}, say("none"): [*skips]}
    drawn = {
        label: setup.sample(changed(without_skips(cut))).pictures
        if cut
        else setup.baseline.pictures
        for label, cut in cuts.items()
    }
    toggle = Frames(
        say("skips"),
        [*drawn],
        [setup.row(pictures) for pictures in drawn.values()],
        say("skips_alt"),
        "buttons",
        note=say("skips_note"),
    )
    whole, cut = similarities(setup, []), similarities(setup, [*skips])
    lines = [
        Line(say(f"{name}_{how}"), LEVELS, own.mean(0).tolist(), own.std(0).tolist())
        for how, values in (("with", whole), ("without", cut))
        for name, own in zip(("layout", "detail"), values, strict=True)
    ]
    chart = LineChart(say("similarity"), say("level"), say("correlation"), lines, log_x=True)
    at = LEVELS.index(1.0)
    lost = (whole - cut)[..., at]
    seen = [_alike(drawn[say("all")], drawn[say("none")], part) for part in (0, 1)]
    effects = [
        Effect("place", say("place"), seen[1], seen[0], "lower"),
        *(
            Effect(
                f"{name}_without_skips",
                say(f"{name}_without_skips"),
                cut[number, :, at].tolist(),
                whole[number, :, at].tolist(),
                "lower",
                3,
            )
            for number, name in enumerate(("layout", "detail"))
        ),
        Effect(
            "detail_lost_more_than_layout",
            say("detail_lost_more_than_layout"),
            lost[1].tolist(),
            lost[0].tolist(),
            "higher",
            3,
        ),
    ]
    return PartResult([stages(setup), toggle, chart], effects)


def similarities(setup: Setup, cut: Collection[int]) -> Tensor:
    """How much the estimate of x0 is like the true latent [2, N, levels], for each real picture.

    The cosine of layout, which is the mean of the cells of a 2 × 2 grid, and of the detail within
    them, both apart from the mean of all pictures; without the skip connections `cut`.
    """
    change = changed(without_skips(cut))
    unit, middle = setup.latents.std().item(), setup.latents.mean((0, 2, 3), keepdim=True)
    found: list[Tensor] = []
    for level in LEVELS:
        x = setup.latents + unit * level * setup.noise(setup.latents, 0)
        estimate = setup.estimate(x, unit * level, change)
        parts = zip(*(bands(each - middle, [2]) for each in (estimate, setup.latents)), strict=True)
        found.append(
            torch.stack([F.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in parts])
        )
    return torch.stack(found, -1)


def _alike(pictures: Tensor, others: Tensor, part: int) -> list[float]:
    """The correlation of each two pictures, of their layout (0) or their detail (1)."""
    return correlation(*(bands(each, [4])[part] for each in (pictures, others))).tolist()


def stages(setup: Setup) -> Frames:
    """The output of each block, its three main components as red, green and blue."""
    say = setup.say("unet")
    maps: dict[str, Tensor] = {}
    unit = setup.latents.std().item()
    latent = setup.latents[:1]
    setup.estimate(
        latent + unit * setup.noise(latent, 0), unit, changed(record_stages(maps.__setitem__))
    )
    labels = {
        name: say("stage", name=name, channels=own.shape[1], size=f"{own.shape[3]}×{own.shape[2]}")
        for name, own in maps.items()
    }
    return Frames(
        say("stages"),
        [say("input"), *labels.values()],
        [
            _square(to_images(setup.pictures[:1])[0]),
            *(_square(colours(own[0])) for own in maps.values()),
        ],
        say("stages_alt"),
        "slider",
        note=say("stages_note"),
    )


def colours(features: Tensor) -> Image.Image:
    """Features [C, h, w] as a picture: their three principal components as colours."""
    height, width = features.shape[1:]
    rows = features.double().flatten(1).T
    rows = rows - rows.mean(0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    values = rows @ directions[:3].T
    spread = 2 * values.std(0, keepdim=True).clamp_min(1e-9)
    return to_images((values / spread).T.reshape(1, -1, height, width))[0]


def _square(image: Image.Image) -> Image.Image:
    return image.resize((SHOWN, SHOWN), Image.Resampling.NEAREST)
