"""Part 8, reverse diffusion: few and many steps, the estimates on the way, and samplers' paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from undust.diffusion.noise import PictureNoise
from undust.explain.bands import bands
from undust.explain.effect import Effect, mean_and_deviation
from undust.explain.figures import Frames, Line, LineChart
from undust.explain.result import PartResult
from undust.explain.setup import Sampled, Setup
from undust.generation import loop

PLAIN, BETTER, NOISY = "euler", "deis", "euler-ancestral"
PATHS = (PLAIN, BETTER, "heun", "dpmpp-2m", NOISY, "dpmpp-2m-sde")
FINE = "dpmpp-3m"  # of third order: with `FINE_STEPS` it counts as the end of the flow
MOST, FINE_STEPS, MANY = 4, 5, 100  # in units of the setup's steps, which 10 are enough for
CAPS = 32, 50, 1000  # of these numbers of steps
CELLS = 16  # a grid beyond whose cells is texture


def show(setup: Setup) -> PartResult:
    """The part of this model."""
    most, fine_steps, many = (
        min(factor * setup.steps, cap)
        for factor, cap in zip((MOST, FINE_STEPS, MANY), CAPS, strict=True)
    )
    counts = [2**k for k in range(most.bit_length())]
    few = max(count for count in counts if count <= max(setup.steps, 2))
    fine = setup.sample(sampler=FINE, steps=fine_steps)
    plain = {count: setup.sample(sampler=PLAIN, steps=count) for count in counts}
    better = {
        count: setup.sample(sampler=BETTER, steps=count) for count in counts if 1 < count <= few
    }
    noisy = setup.sample(sampler=NOISY, steps=few)
    apart = {
        PLAIN: {count: distances(each.latents, fine.latents) for count, each in plain.items()},
        BETTER: {count: distances(each.latents, fine.latents) for count, each in better.items()},
    }
    alone = first_alone(setup, PLAIN, many)[-1].x
    one = [*(found[0] for found in apart[PLAIN].values()), *distances(alone, fine.latents[:1])]
    known = {PLAIN: plain[few], BETTER: better[few], NOISY: noisy}
    ways = {
        name: path(setup, known[name].steps if name in known else first_alone(setup, name, few))
        for name in PATHS
    }
    figures = [
        _counts(setup, plain, fine, fine_steps),
        _distance_chart(setup, apart, [*counts, many], one),
        _estimates(setup, plain[few]),
        _plane(setup, {**ways, FINE: path(setup, fine.steps)}, few, fine_steps),
    ]
    effects = _effects(setup, plain, apart, noisy, few, fine)
    numbers = {
        "steps": counts,
        "distance": {name: [*each.values()] for name, each in apart.items()},
        "many_steps": many,
        "distance_first_seed": one,
    }
    return PartResult(figures, effects, numbers)


def first_alone(setup: Setup, sampler: str, steps: int) -> list[loop.Step]:
    """The steps of the first seed's picture, sampled alone."""
    return [*loop.sample_batch(setup.model, setup.recipes(sampler=sampler, steps=steps)[:1])]


def distances(latents: Tensor, others: Tensor) -> list[float]:
    """Root mean square of the difference [B], in units of the others' deviation."""
    return ((latents - others).square().mean((1, 2, 3)).sqrt() / others.std()).tolist()


def path(setup: Setup, steps: Sequence[loop.Step]) -> Tensor:
    """The first picture's x from its noise to its end, scaled to variance 1: [steps + 1, D]."""
    shape = steps[0].x.shape[1:]
    start = PictureNoise(setup.seeds[:1], shape).start().to(steps[0].x)
    after = [step.x[:1] / (1 + step.sigma**2) ** 0.5 for step in steps]
    return torch.cat([start, *after]).flatten(1)


def plane(paths: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Paths [points, D] in the plane of their two main components, and its share of the variance.

    The first point of the first path is on the left of its last, and not above it.
    """
    rows = torch.cat([*paths]).double()
    middle = rows.mean(0)
    _, sizes, directions = torch.linalg.svd(rows - middle, full_matrices=False)
    flat = [(each.double() - middle) @ directions[:2].T for each in paths]
    signs = torch.where(flat[0][0] > flat[0][-1], -1.0, 1.0)
    share = sizes[:2].square().sum() / sizes.square().sum()
    return [each * signs for each in flat], share.item()


def _texture(pictures: Tensor) -> list[float]:
    """Root mean square of what a grid of cells does not show."""
    return bands(pictures, [CELLS])[-1].square().mean((1, 2, 3)).sqrt().tolist()


def _counts(setup: Setup, plain: Mapping[int, Sampled], fine: Sampled, fine_steps: int) -> Frames:
    """A slider over numbers of steps, with the end of the flow below."""
    say, n = setup.say("reverse"), setup.drawn
    rows = [torch.cat([each.pictures[:n], fine.pictures[:n]]) for each in plain.values()]
    return Frames(
        say("counts"),
        [say("count", steps=count) for count in plain],
        [setup.row(each, n) for each in rows],
        say("counts_alt"),
        note=say("counts_note", sampler=PLAIN, fine=FINE, steps=fine_steps),
    )


def _distance_chart(
    setup: Setup,
    apart: Mapping[str, Mapping[int, list[float]]],
    counts: Sequence[int],
    one: Sequence[float],
) -> LineChart:
    say = setup.say("reverse")
    lines: list[Line] = []
    for name, found in apart.items():
        means, spreads = zip(*map(mean_and_deviation, found.values()), strict=True)
        lines.append(Line(name, [*found], means, spreads))
    lines.append(Line(say("alone", sampler=PLAIN), counts, one))
    return LineChart(
        say("distance"),
        say("steps"),
        say("distance_y"),
        lines,
        log_x=True,
        log_y=True,
        note=say("distance_note"),
    )


@torch.inference_mode()
def _estimates(setup: Setup, sampled: Sampled) -> Frames:
    """A slider over steps: noisy latents above, estimates below."""
    say, model, n = setup.say("reverse"), setup.model, setup.drawn
    steps = sampled.steps
    levels = setup.levels(len(steps)).tolist()
    xs = [PictureNoise(setup.seeds, sampled.latents.shape[1:]).start()]
    xs += [step.x / (1 + step.sigma**2) ** 0.5 for step in steps[:-1]]
    images = [
        setup.row(model.decode(torch.cat([x[:n].to(step.x0), step.x0[:n]])), n)
        for x, step in zip(xs, steps, strict=True)
    ]
    labels = [
        say("estimate", step=k + 1, steps=len(steps), level=setup.level(levels[k]))
        for k in range(len(steps))
    ]
    note = say("estimates_note", sampler=PLAIN)
    return Frames(say("estimates"), labels, images, say("estimates_alt"), note=note)


def _plane(setup: Setup, ways: Mapping[str, Tensor], steps: int, fine_steps: int) -> LineChart:
    say = setup.say("reverse")
    flat, share = plane([*ways.values()])
    names = [say("fine", sampler=name, steps=fine_steps) if name == FINE else name for name in ways]
    lines = [
        Line(name, *each.T.tolist(), arrow=True, markers=way != FINE)
        for name, way, each in zip(names, ways, flat, strict=True)
    ]
    note = say("plane_note", steps=steps, share=f"{share:.0%}")
    return LineChart(say("plane"), say("first"), say("second"), lines, square=True, note=note)


def _effects(
    setup: Setup,
    plain: Mapping[int, Sampled],
    apart: Mapping[str, Mapping[int, list[float]]],
    noisy: Sampled,
    few: int,
    fine: Sampled,
) -> list[Effect]:
    say = setup.say("reverse")
    more = max(count for count in plain if count <= 2 * few)
    own, better = apart[PLAIN], apart[BETTER]
    return [
        Effect("one_step", say("one_step", more=more), own[1], own[more], "higher", 3),
        Effect(
            "one_step_texture",
            say("one_step_texture"),
            _texture(plain[1].pictures),
            _texture(fine.pictures),
            "lower",
            3,
        ),
        Effect(
            "better_solver",
            say("better_solver", sampler=BETTER, plain=PLAIN, steps=few),
            better[few],
            own[few],
            "lower",
            3,
        ),
        Effect(
            "new_noise",
            say("new_noise", sampler=NOISY, plain=PLAIN, steps=few),
            distances(noisy.latents, fine.latents),
            own[few],
            "higher",
            3,
        ),
    ]
