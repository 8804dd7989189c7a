"""Guidance: agreement with the prompt against diversity, from none to far too much."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.explain.effect import Effect, mean_and_deviation
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.result import PartResult
from undust.explain.setup import Sampled, Setup

SCALES = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 20.0)
NONE, USUAL, MUCH = 1.0, 4.0, 20.0  # those of them that are compared
LEVELS = (0.5, 1.0, 2.0)  # noise levels of the classifier, in units of the latents' deviation


def show(setup: Setup) -> PartResult:
    """The part of this model. Raises UndustError for one without text."""
    if not setup.model.texts:
        raise UndustError(f"guidance: it needs a model with text, which {setup.model.name} is not")
    say = setup.say("guidance")
    drawn = [sampled(setup, setup.prompts, scale) for scale in SCALES]
    alike = [sampled(setup, [setup.prompts[-1]] * len(setup.seeds), scale) for scale in SCALES]
    found = [errors(setup, each.latents) for each in drawn]
    margins = [margin(each, owners(setup)) for each in found]
    apart = [spread(each.pictures) for each in alike]
    colours = [saturation(each.pictures) for each in drawn]
    contrasts = [contrast(each.pictures) for each in drawn]
    n = setup.drawn
    rows = [torch.cat([a.pictures[:n], b.pictures[:n]]) for a, b in zip(drawn, alike, strict=True)]
    figures = [
        Frames(
            say("scales"),
            [say("scale", scale=f"{scale:g}") for scale in SCALES],
            [setup.row(each, n) for each in rows],
            say("scales_alt"),
            start=SCALES.index(USUAL),
            note=say("scales_note", prompt=setup.prompts[-1]),
        ),
        _chart(setup, "agreement", {say("agreement_y"): margins}),
        _chart(setup, "diversity", {say("diversity_y"): apart}),
        _chart(setup, "colours", {say("saturation"): colours, say("contrast"): contrasts}),
    ]
    effects = _effects(setup, margins, apart, colours, contrasts)
    numbers = {
        "scales": [*SCALES],
        "agreement": margins,
        "classified_right": [right(each, owners(setup)) for each in found],
        "diversity": apart,
        "saturation": colours,
        "contrast": contrasts,
    }
    return PartResult(figures, effects, numbers)


def sampled(setup: Setup, prompts: Sequence[str], scale: float) -> Sampled:
    """A picture for each seed at a guidance scale."""
    if scale == setup.guidance and [*prompts] == [*setup.prompts]:
        return setup.baseline
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "guidance: at 0")  # it is what is to be shown
        return setup.sample(prompts=prompts, guidance=scale)


def candidates(setup: Setup) -> list[str | None]:
    """The setup's prompts, each once; if there is but one, no prompt too."""
    found: list[str | None] = [*dict.fromkeys(setup.prompts)]
    return found if len(found) > 1 else [*found, None]


def owners(setup: Setup) -> list[int]:
    """The place of each seed's prompt among the candidates."""
    return [candidates(setup).index(prompt) for prompt in setup.prompts]


def errors(setup: Setup, latents: Tensor) -> Tensor:
    """Mean squared errors [levels, B, K] of the estimates of latents [B, C, h, w] from noise.

    For each of K candidate prompts; all have the same noise. The lowest makes the model a
    classifier (Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier").
    """
    prompts, unit = candidates(setup), setup.latents.std().item()
    found: list[Tensor] = []
    for seed, level in enumerate(LEVELS):
        x = latents + unit * level * setup.noise(latents[:1], seed)
        estimates = [setup.estimate(x, unit * level, prompts=[each] * len(x)) for each in prompts]
        found.append(
            torch.stack([(each - latents).square().mean((1, 2, 3)) for each in estimates], 1)
        )
    return torch.stack(found)


def margin(found: Tensor, own: Sequence[int]) -> list[float]:
    """The share by which the error [levels, B, K] for the own prompt is below the others' mean."""
    places = torch.tensor(own, device=found.device)[None, :, None].expand(len(found), -1, 1)
    mine = found.gather(2, places)[..., 0]
    others = (found.sum(2) - mine) / (found.shape[2] - 1)
    return (1 - mine / others).mean(0).tolist()


def right(found: Tensor, own: Sequence[int]) -> float:
    """The share of pictures whose own prompt has the lowest error, in units of its level's mean."""
    relative = (found / found.mean((1, 2), keepdim=True)).mean(0)
    best = relative.argmin(1).tolist()
    return sum(a == b for a, b in zip(best, own, strict=True)) / len(own)


def spread(pictures: Tensor) -> list[float]:
    """Of each picture, the mean of the root mean square differences from the others."""
    between = (pictures[:, None] - pictures[None]).square().mean((2, 3, 4)).sqrt()
    return (between.sum(1) / (len(pictures) - 1)).tolist()


def jackknife(values: Sequence[float]) -> list[float]:
    """Pseudo-values of the mean distance of n > 2 pictures, of each one's distance to the others.

    Every pair is in the distances of two pictures, which are not independent: the deviations from
    the mean are multiplied by 2(n − 1)/(n − 2), so that their standard error is the jackknife's.
    """
    count, mean = len(values), sum(values) / len(values)
    return [mean + 2 * (count - 1) / (count - 2) * (value - mean) for value in values]


def saturation(pictures: Tensor) -> list[float]:
    """Of pictures [B, 3, H, W] in [-1, 1]: the mean of the highest colour minus the lowest."""
    shown = pictures.clamp(-1, 1) / 2
    return (shown.amax(1) - shown.amin(1)).mean((1, 2)).tolist()


def contrast(pictures: Tensor) -> list[float]:
    """Of pictures [B, 3, H, W] in [-1, 1]: the deviation of brightness, which is from 0 to 1."""
    return (pictures.clamp(-1, 1).mean(1) / 2).flatten(1).std(1).tolist()


def _effects(
    setup: Setup,
    margins: Sequence[list[float]],
    apart: Sequence[list[float]],
    colours: Sequence[list[float]],
    contrasts: Sequence[list[float]],
) -> list[Effect]:
    """Of values for each scale and seed."""
    say = setup.say("guidance")
    none, usual, much = (SCALES.index(scale) for scale in (NONE, USUAL, MUCH))
    diversity: list[Effect] = []
    if len(setup.seeds) > 2:
        with_, without = jackknife(apart[usual]), jackknife(apart[none])
        diversity = [Effect("diversity", say("diversity_effect"), with_, without, "lower", 3)]
    return [
        Effect("agreement", say("agreement_effect"), margins[usual], margins[none], "higher", 3),
        *diversity,
        Effect("saturation", say("saturation_effect"), colours[much], colours[usual], "higher", 3),
        Effect("contrast", say("contrast_effect"), contrasts[much], contrasts[usual], "higher", 3),
    ]


def _chart(setup: Setup, key: str, values: dict[str, list[list[float]]]) -> LineChart:
    """Values for each scale and seed, by the names of their lines."""
    say = setup.say("guidance")
    lines: list[Line] = []
    for name, each in values.items():
        means, deviations = zip(*map(mean_and_deviation, each), strict=True)
        lines.append(Line(name, SCALES, means, deviations))
    y = next(iter(values)) if len(values) == 1 else say(f"{key}_y")
    return LineChart(say(key), say("scale_x"), y, lines, note=say(f"{key}_note"))
