"""Part 3, time: what is decided at which step, by new noise or another prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from undust.diffusion.guidance import PromptSchedule
from undust.diffusion.noise import PictureNoise
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.registry import Denoise
from undust.explain.bands import bands
from undust.explain.effect import Claim, Effect, mean_and_deviation
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.result import PartResult
from undust.explain.setup import Setup
from undust.generation.guided import guided

CELLS = (4, 16)  # of layout, and of layout with contours; texture is the rest
BANDS = ("layout", "contours", "texture")
POSITIONS = 12  # of the slider, at most
SWAPS = 6  # of the other slider, which costs a whole generation each
SETTLED = 0.9  # cosine with the final picture


def show(setup: Setup) -> PartResult:
    """The part of this model. Raises UndustError for one that needs a picture."""
    setup.check_inputs()
    chosen = positions(setup.steps, POSITIONS)
    frames, changes = _again(setup, chosen)
    alike = similarities(setup)
    settled = settling(alike)
    figures = [frames, _change_chart(setup, chosen, changes), _settling_chart(setup, alike)]
    effects = _effects(setup, chosen, changes, settled)
    if setup.model.texts and len({*setup.prompts}) > 1:
        figure, effect = _swaps(setup)
        figures.insert(2, figure)
        effects.append(effect)
    numbers = {
        "steps": chosen,
        "sigmas": setup.levels().tolist(),
        "change": {band: changes[..., n].sqrt().tolist() for n, band in enumerate(BANDS)},
        "settled_at_step": {band: settled[:, n].tolist() for n, band in enumerate(BANDS)},
    }
    return PartResult(figures, effects, numbers)


def positions(steps: int, most: int) -> list[int]:
    """At most `most` steps from the first, 0, to the last, about evenly."""
    count = min(steps, most)
    return [round(k * (steps - 1) / max(count - 1, 1)) for k in range(count)]


def nearest(chosen: Sequence[int], wanted: float) -> tuple[int, int]:
    """The place in `chosen` of the step nearest to the wanted one, and that step."""
    place = min(range(len(chosen)), key=lambda k: abs(chosen[k] - wanted))
    return place, chosen[place]


def renoised(setup: Setup, latents: Tensor, step: int) -> Tensor:
    """Clean latents [B, C, h, w] under noise of the level before a step, as x = x0 + σ·n.

    To go on from there is SDEdit (Meng et al. 2022).
    """
    return latents + setup.levels()[step].to(latents) * setup.noise(latents, 1)


def unprompted(setup: Setup, count: int) -> Denoise:
    """The denoiser of `count` pictures without a prompt."""
    cond = setup.model.condition([None] * count)
    return lambda x, sigma: setup.model.denoise(x, sigma, cond)


@torch.inference_mode()
def finished(setup: Setup, x: Tensor, step: int, denoise: Denoise) -> Tensor:
    """The latents that x [B, C, h, w] before a step comes to by the steps that are left."""
    noise = PictureNoise(range(len(x)), x.shape[1:])
    run = SAMPLERS[setup.recipes()[0].sampler]
    *_, last = run(denoise, x, setup.levels()[step:], noise)
    return last.x


def swapped(setup: Setup, prompts: Sequence[str], step: int) -> Tensor:
    """The latents by the setup's prompts for `step` steps and by other prompts from then on."""
    levels = setup.levels()
    first, other = (
        guided(setup.model, setup.recipes(each), levels) for each in (setup.prompts, prompts)
    )
    noise = PictureNoise(setup.seeds, setup.baseline.latents.shape[1:])
    start = setup.model.process.start(noise.start(), levels[0])
    return finished(setup, start, 0, PromptSchedule(first, [(levels[step].item(), other)]))


def energies(pictures: Tensor, others: Tensor) -> Tensor:
    """Mean squares of the bands of the difference of pictures [B, 3, H, W], as [B, bands]."""
    parts = bands(pictures - others, CELLS)
    return torch.stack([part.square().mean((1, 2, 3)) for part in parts], -1)


def similarities(setup: Setup) -> Tensor:
    """Cosines of the estimate of x0 with the final picture [steps, B, bands], without the mean.

    Of Euler's method, whose steps use the estimate as it is, not extrapolated.
    """
    sampled = setup.sample(sampler="euler")
    final = bands(sampled.pictures, (1, *CELLS))[1:]
    found: list[Tensor] = []
    for step in sampled.steps:
        estimate = bands(_decoded(setup, step.x0), (1, *CELLS))[1:]
        pairs = zip(estimate, final, strict=True)
        found.append(
            torch.stack([F.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in pairs], -1)
        )
    return torch.stack(found)


def settling(alike: Tensor) -> Tensor:
    """The step, linearly between steps, from which on cosines [steps, …] stay above `SETTLED`."""
    below = (alike[:-1] < SETTLED).long()  # after the last step it is the picture itself
    last = (below * torch.arange(1, len(alike)).reshape(-1, *[1] * (alike.ndim - 1))).amax(0)
    before = alike.gather(0, (last - 1).clamp_min(0)[None])[0]
    after = alike.gather(0, last[None])[0]
    part = (SETTLED - before) / (after - before).clamp_min(1e-12)
    return torch.where(last > 0, last - 1 + part.clamp(0, 1), 0.0)


def _again(setup: Setup, chosen: Sequence[int]) -> tuple[Frames, Tensor]:
    """Real pictures from each step on, and the energies of their change [steps, N, bands]."""
    say, originals = setup.say("time"), _decoded(setup, setup.latents)
    columns = setup.shown
    images: list[Image.Image] = []
    changes: list[Tensor] = []
    for step in chosen:
        x = renoised(setup, setup.latents, step)
        redone = _decoded(setup, finished(setup, x, step, unprompted(setup, len(x))))
        rows = [each[:columns] for each in (originals, _seen(setup, x, step), redone)]
        images.append(setup.row(torch.cat(rows), columns))
        changes.append(energies(redone, originals))
    labels = [_label(setup, "from_step", step) for step in chosen]
    frames = Frames(
        say("again"),
        labels,
        images,
        say("again_alt"),
        start=len(chosen) // 2,
        note=say("again_note"),
    )
    return frames, torch.stack(changes)


def _effects(setup: Setup, chosen: Sequence[int], changes: Tensor, settled: Tensor) -> list[Effect]:
    """Changes [steps, N, bands] late against early, and the steps [B, bands] of settling."""
    say = setup.say("time")
    early, late = (nearest(chosen, share * setup.steps) for share in (0.25, 0.75))
    when = {"early": early[1], "late": late[1], "steps": setup.steps}

    def compared(name: str, values: Tensor, claim: Claim) -> Effect:
        ends = values[late[0]].tolist(), values[early[0]].tolist()
        return Effect(name, say(name, **when), *ends, claim, 3)

    return [
        compared("layout_late", changes[..., 0].sqrt(), "lower"),
        compared("detail_share", 1 - changes[..., 0] / changes.sum(-1).clamp_min(1e-12), "higher"),
        Effect(
            "layout_late_prompted",
            say("layout_late_prompted", **when),
            _prompted(setup, late[1]),
            _prompted(setup, early[1]),
            "lower",
            3,
        ),
        Effect(
            "texture_settles",
            say("texture_settles", cosine=SETTLED),
            settled[:, 2].tolist(),
            settled[:, 0].tolist(),
            "higher",
        ),
    ]


def _prompted(setup: Setup, step: int) -> list[float]:
    """The change of the layout by new noise, with the prompts and guidance, for each seed."""
    denoise = guided(setup.model, setup.recipes(), setup.levels())
    again = finished(setup, renoised(setup, setup.baseline.latents, step), step, denoise)
    return energies(_decoded(setup, again), setup.baseline.pictures)[:, 0].sqrt().tolist()


def _swaps(setup: Setup) -> tuple[Frames, Effect]:
    """Each picture with the next one's prompt from some step on."""
    say, steps = setup.say("time"), setup.steps
    prompts = [*setup.prompts[1:], setup.prompts[0]]
    chosen = positions(steps, SWAPS)
    drawn = [_decoded(setup, swapped(setup, prompts, step)) for step in chosen]
    late = nearest(chosen, 0.75 * steps)
    moved = [energies(each, setup.baseline.pictures).sum(-1).sqrt().tolist() for each in drawn]
    n = setup.drawn
    rows = [torch.cat([setup.baseline.pictures[:n], each[:n]]) for each in drawn]
    figure = Frames(
        say("swap"),
        [_label(setup, "swap_step", step) for step in chosen],
        [setup.row(each, n) for each in rows],
        say("swap_alt"),
        start=len(chosen) // 2,
        note=say("swap_note", prompts=" · ".join(setup.prompts[:n])),
    )
    text = say("swap_late", late=late[1], steps=steps)
    return figure, Effect("prompt_late", text, moved[late[0]], moved[0], "lower", 3)


def _change_chart(setup: Setup, chosen: Sequence[int], changes: Tensor) -> LineChart:
    """Root mean squares of the change [steps, B, bands], each band in units of its first."""
    say = setup.say("time")
    sizes = changes.sqrt()
    sizes = sizes / sizes[0].mean(0).clamp_min(1e-12)
    lines = [_line(say(band), chosen, sizes[..., n]) for n, band in enumerate(BANDS)]
    return LineChart(say("change"), say("step"), say("change_y"), lines, note=say("change_note"))


def _settling_chart(setup: Setup, alike: Tensor) -> LineChart:
    say, steps = setup.say("time"), [*range(len(alike))]
    lines = [_line(say(band), steps, alike[..., n]) for n, band in enumerate(BANDS)]
    return LineChart(say("settling"), say("step"), say("cosine"), lines, note=say("settling_note"))


def _line(name: str, steps: Sequence[int], values: Tensor) -> Line:
    """Mean and deviation over the seeds of values [steps, B]."""
    means, spreads = zip(*map(mean_and_deviation, values.tolist()), strict=True)
    return Line(name, steps, means, spreads)


def _label(setup: Setup, key: str, step: int) -> str:
    level = setup.level(setup.levels()[step].item())
    return setup.say("time")(key, step=step, steps=setup.steps, level=level)


@torch.inference_mode()
def _decoded(setup: Setup, latents: Tensor) -> Tensor:
    return setup.model.decode(latents)


def _seen(setup: Setup, x: Tensor, step: int) -> Tensor:
    """The pictures of noisy latents before a step, scaled to the variance of clean ones."""
    return _decoded(setup, x * (1 + setup.levels()[step] ** 2).rsqrt().to(x))
