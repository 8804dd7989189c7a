"""The order of convergence of every sampler: stated by its authors, registered, and measured.

.venv/bin/python benchmarks/sampler_orders.py --model emoji --out docs/lab/order.md

Without --model on closed forms alone: half a minute. Without --out it prints the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from undust.diffusion.fitting import distance, no_noise
from undust.diffusion.samplers import SAMPLERS
from undust.lab import page
from undust.lab.model_under_test import REFERENCE, ModelUnderTest, end_of
from undust.pipeline import LatentDiffusion, load

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from convergence import (
    BOTTOM,
    GAUSSIAN,
    MIXTURE,
    TOP,
    BrownianCase,
    falling,
    fitted,
    flow_errors,
    path_errors,
    strong_errors,
    weak_errors,
)

TOLERANCE = 0.15  # a measured order within this of a number is that number
# A network's answers are rough from one of its time steps to the next, and no order shows until the
# sampler's steps are as short. So on a model it is measured over a shorter way.
MODEL_TOP = 0.25
MODEL_STEPS = (24, 36, 48, 72, 96)  # multiples of 3, as in `STEPS`
MODEL_PATH_STEPS, MODEL_FINEST = (12, 24, 48), 384
REFERENCE_STEPS = 1000
RIVAL = "unipc"  # another method of the reference's order: what they differ by is rounding
MARGIN = 10  # an error counts where it is so many times that


class Stated(NamedTuple):
    """The order that a sampler's authors give it, and why it is another one where it is."""

    order: int | None
    missed: str = ""


STATED = {
    "ddim": Stated(1),
    "deis": Stated(2),
    "deis(order=3)": Stated(3, "its first step is Euler's"),
    "dpm-adaptive": Stated(3),
    "dpm-fast": Stated(3, "its last one or two steps are of lower order"),
    "dpm-solver-1": Stated(1),
    "dpm-solver-2": Stated(2),
    "dpm-solver-3": Stated(3),
    "dpm2": Stated(2),
    "dpmpp-2m": Stated(2),
    "dpmpp-2m-sde": Stated(2),
    "dpmpp-3m": Stated(3),
    "dpmpp-3m-sde": Stated(
        3,
        "past estimates do not foresee what noise does to the next, and its first step is Euler's",
    ),
    "edm": Stated(2),
    "er-sde": Stated(3, "it takes a difference between two levels for the slope at one of them"),
    "euler": Stated(1),
    "heun": Stated(2),
    "ipndm": Stated(4, "its first step is Euler's, and its weights are those of even steps"),
    "lcm": Stated(None, "it wants a distilled model; with another one, more steps do not help"),
    "lms": Stated(4, "its first step is Euler's"),
    "plms": Stated(2),
    "pndm": Stated(2),
    "rk45": Stated(5),
    "tcd": Stated(None, "it wants a distilled model; with another one, more steps do not help"),
    "unipc": Stated(3),
    "unipc(order=3)": Stated(4, "its first step has two answers, whatever the order"),
}
"""Of the error at the end or of the distribution. Who is missing states none."""
STATED_STRONG = {"sa-solver": 1}

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (("deis", {"order": 3}), ("unipc", {"order": 3}))
"""Measured beside every sampler's defaults."""


class Order(BaseModel):
    """One sampler's order in one sense.

    of: what falls with it, the error of the flow's "end", of the "distribution" of many ends (weak
    order), or of the sample on a given Brownian "path" (strong order). None: not stated, or not
    measured there.
    """

    model_config = ConfigDict(frozen=True)

    sampler: str
    of: Literal["end", "distribution", "path"]
    stated: int | None
    registered: float
    gaussian: float | None = None
    mixture: float | None = None
    model: float | None = None
    model_steps: tuple[int, ...] = ()

    @property
    def missed(self) -> bool:
        """Whether the registry's order is not what was measured on a distribution."""
        found = [value for value in (self.gaussian, self.mixture) if value is not None]
        return any(abs(value - self.registered) > TOLERANCE for value in found)

    @property
    def why(self) -> str:
        """What there is to say where the numbers of a row differ."""
        said: list[str] = []
        if self.missed:
            said.append(f"not the registered {self.registered:g}")
        stated = STATED.get(self.sampler, Stated(None))
        if self.of != "path" and stated.order != self.registered and stated.missed:
            said.append(stated.missed)
        if self.model_steps and self.model is None:
            said.append("on the model all but rounding is gone")
        elif self.model is not None and abs(self.model - self.registered) > TOLERANCE:
            said.append(f"on the model over {self.model_steps[0]} … {self.model_steps[-1]} steps")
        return "; ".join(said)


class Orders(BaseModel):
    """All of them, and what the figures on the model depend on."""

    model_config = ConfigDict(frozen=True)

    orders: tuple[Order, ...]
    model: str | None = None
    model_hash: str | None = None
    pictures: int | None = None
    guidance: float | None = None
    rounding: float | None = None

    @property
    def note(self) -> str:
        """What the table does not say of itself."""
        said = (
            f"Powers of 1/steps with which the error falls from σ = {TOP:g} to {BOTTOM:g}; stated: "
            "by the authors, here: in the registry. An adaptive sampler is measured by the pair of "
            "methods that it steps with, in equal steps."
        )
        if self.model is not None and self.rounding is not None:
            said += (
                f" On {self.model} {self.model_hash} from σ = {MODEL_TOP:g}: {self.pictures} "
                f"pictures, guidance {self.guidance:g}, float32; rounding is {self.rounding:.1e}, "
                f"and errors below {MARGIN} times that do not count."
            )
        return said

    def columns(self) -> list[str]:
        """Of the table for people."""
        on_model = [f"{self.model}>"] if self.model is not None else []
        return [
            "sampler",
            "error of",
            "stated>",
            "here>",
            "Gaussian>",
            "mixture>",
            *on_model,
            "why",
        ]

    def rows(self) -> list[list[str]]:
        """A row for each order."""
        return [
            [
                order.sampler,
                order.of,
                "" if order.stated is None else str(order.stated),
                f"{order.registered:g}",
                *map(_two_digits, (order.gaussian, order.mixture)),
                *([_two_digits(order.model)] if self.model is not None else []),
                order.why,
            ]
            for order in self.orders
        ]


def _two_digits(order: float | None) -> str:
    return "" if order is None else f"{order:.2f}"


Case = tuple[str, dict[str, Any]]
"""A sampler's name and its options."""


def all_cases() -> list[Case]:
    """Every sampler as it is, and those of `OPTIONS`, by name."""
    return sorted([*((name, dict[str, Any]()) for name in SAMPLERS), *OPTIONS], key=_label)


def measure(
    model: LatentDiffusion | None = None,
    *,
    cases: Sequence[Case] | None = None,
    pictures: int = 4,
    observe: Callable[[int, int], None] | None = None,
) -> Orders:
    """The orders of samplers on a Gaussian, a mixture and, if one is given, a model.

    cases: all unless told; pictures: how many the model is asked for; observe: called with the
    number of cases done and of all.
    """
    cases = all_cases() if cases is None else cases
    worlds = BrownianCase(GAUSSIAN), BrownianCase(MIXTURE)
    bench = None if model is None else _Bench(ModelUnderTest(model, pictures))
    orders: list[Order] = []
    for done, (name, options) in enumerate(cases):
        orders += _orders(name, options, worlds, bench)
        if observe:
            observe(done + 1, len(cases))
    return Orders(orders=tuple(orders), **(bench.settings if bench else {}))


def _label(case: Case) -> str:
    name, options = case
    said = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{name}({said})" if said else name


def _orders(
    name: str,
    options: dict[str, Any],
    worlds: tuple[BrownianCase, BrownianCase],
    bench: _Bench | None,
) -> list[Order]:
    """A sampler's rows: one if it draws no noise, else one or two."""
    label, sampler = _label((name, options)), SAMPLERS[name]
    stated = STATED.get(label, Stated(None)).order
    gaussian, mixture = worlds
    if not sampler.stochastic:
        row = Order(
            sampler=label,
            of="end",
            stated=stated,
            registered=sampler.order,
            gaussian=fitted(gaussian.flow_errors(name, **options)),
            mixture=fitted(mixture.flow_errors(name, **options)),
        )
        return [row.model_copy(update=bench.flow(name, options)) if bench else row]
    rows = [
        Order(
            sampler=label,
            of="distribution",
            stated=stated,
            registered=sampler.order,
            gaussian=fitted(weak_errors(name, **options)),
        )
    ]
    if sampler.strong is not None:
        row = Order(
            sampler=label,
            of="path",
            stated=STATED_STRONG.get(name),
            registered=sampler.strong,
            gaussian=fitted(strong_errors(name, **options)),
            mixture=fitted(mixture.path_errors(name, **options)),
        )
        rows.append(row.model_copy(update=bench.path(name, options)) if bench else row)
    return rows


class _Bench:
    """A model: where its flow goes between the same two levels, and what rounding does to it."""

    def __init__(self, subject: ModelUnderTest) -> None:
        self.subject = subject
        self.start = subject.state(MODEL_TOP)
        levels = falling(MODEL_TOP, BOTTOM, REFERENCE_STEPS)
        self.end, rival = (self._end(name, levels) for name in (REFERENCE, RIVAL))
        self.rounding = distance(self.end, rival)
        self.settings: dict[str, Any] = {**subject.settings, "rounding": self.rounding}

    def _end(self, name: str, levels: Tensor) -> Tensor:
        with torch.inference_mode():
            return end_of(name, self.subject.denoiser(levels), self.start, levels, no_noise)

    @torch.inference_mode()
    def flow(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """The fields of a row about this model."""
        denoise = self.subject.denoiser(falling(MODEL_TOP, BOTTOM, 1))
        points = flow_errors(
            name, denoise, self.start, self.end, MODEL_STEPS, top=MODEL_TOP, **options
        )
        seen = [point for point in points if point[1] > MARGIN * self.rounding]
        steps = tuple(count for count, _ in (seen or points))
        return {"model": fitted(seen) if len(seen) > 1 else None, "model_steps": steps}

    @torch.inference_mode()
    def path(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """The same of a sampler with noise."""
        points = path_errors(
            name,
            self.subject.denoiser(falling(MODEL_TOP, BOTTOM, 1)),
            self.start,
            steps=MODEL_PATH_STEPS,
            finest=MODEL_FINEST,
            top=MODEL_TOP,
            **options,
        )
        return {"model": fitted(points), "model_steps": MODEL_PATH_STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", metavar="NAME|PATH", help="measured beside the closed forms")
    parser.add_argument("--out", metavar="FILE", type=Path, help="a page of the table")
    asked = parser.parse_args()
    found = measure(load(asked.model) if asked.model else None)
    table = page.table(found.columns(), found.rows())
    if asked.out is None:
        print(f"{table}\n{found.note}")
        return
    command = f".venv/bin/python benchmarks/sampler_orders.py --out {asked.out}"
    command += f" --model {asked.model}" if asked.model else ""
    page.write(asked.out, "Orders of convergence", command, [table, found.note])


if __name__ == "__main__":
    main()
