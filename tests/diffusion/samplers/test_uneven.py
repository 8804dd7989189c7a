"""Lists of σ whose steps differ a thousandfold in length: multistep samplers stay near the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analytic import Mixture
from orders import doubles
from undust.diffusion.noise import BrownianPath, PictureNoise
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.adams import UNEVEN, largest, uneven
from undust.diffusion.schedules import SCHEDULES, times
from undust.errors import UndustError

DATA = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.3, 0.4))
# How many times as large as the data, whose numbers are about 1, an end may be. These two are far
# off with few steps of any kind, where the steps are as uneven as those of named schedules.
FAR = {"dpmpp-3m-sde": 100, "sa-solver": 100}
NEAR = 10
MULTISTEP = (
    *("deis", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m", "er-sde"),
    *("gradient-estimation", "ipndm", "lms", "unipc", *FAR),
)


@st.composite
def lists(draw: st.DrawFn) -> list[float]:
    """σ from 14.6 to 0.02 and then 0, in steps of 10⁻³ to 10 in log σ."""
    sigmas = [14.6]
    for length in draw(st.lists(st.floats(-3, 1), min_size=2, max_size=10)):
        sigmas.append(sigmas[-1] * math.exp(-(10**length)))
    return [sigma for sigma in sigmas if sigma > 0.02] + [0.0]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(lists())
@example([14.6, 2.8086, 2.8083, 0.0203, 0.0202, 0.0201, 0.02, 0.0])
@example([3.0, 0.8047, 0.8046, 0.4131, 0.41305, 0.413, 0.0617, 0.0616, 0.0602, 0.0229, 0.0228, 0.0])
def test_ends_stay_near_the_data(levels: list[float]):
    sigmas = doubles(*levels)
    bounded = largest((-sigmas.log()).tolist()) < math.inf
    for name in MULTISTEP:
        bound = NEAR if bounded else FAR.get(name, NEAR)
        sampler = SAMPLERS[name]
        noise = (BrownianPath if sampler.path else PictureNoise)(range(4), (2,))
        *_, last = sampler(DATA, noise.start().double() * sigmas[0], sigmas, noise)
        assert last.x.abs().max() < bound, name


@pytest.fixture(scope="module")
def quantiles_once() -> Iterator[None]:
    """Those of the schedule "beta", a second for each process, are the same for all of them."""
    compute = times.beta_quantile

    @cache
    def kept(share: tuple[float, ...], a: float, b: float) -> torch.Tensor:
        return compute(doubles(*share), a, b)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(times, "beta_quantile", lambda s, a, b: kept(tuple(s.tolist()), a, b))
        yield


@pytest.mark.usefixtures("quantiles_once")
@pytest.mark.parametrize("process", sorted(PROCESSES))
def test_no_named_schedule_is_uneven(process: str):
    """So that the order is lowered for listed σ alone, and old pictures stay the same."""
    for name, schedule in SCHEDULES.items():
        for steps in (3, 4, 5, 8, 10, 15, 20, 30, 200 if name == "beta" else 1000):  # it is slow
            try:
                levels = (-schedule(PROCESSES[process](), steps)[:-1].log()).tolist()
            except UndustError:
                continue
            assert largest(levels) == math.inf, (name, steps)
            for apart in (1, 2):  # of three answers, the two older ones as well
                for k in range(apart, len(levels) - 1):
                    step = levels[k + 1] - levels[k]
                    older, newer = levels[k - apart], levels[k - apart + 1]
                    assert not uneven(newer, older, step), (name, steps)


@pytest.mark.parametrize("name", ["deis", "dpmpp-2m-sde", "dpmpp-3m-sde", "er-sde"])
def test_a_step_that_is_too_long_is_of_first_order(name: str):
    """From the same state the long step is as if the list began there."""
    h = 0.05
    lengths = [h, h, 1.01 * UNEVEN * h]
    sigmas = doubles(2.0, *(2.0 * math.exp(-sum(lengths[: k + 1])) for k in range(3)))

    def ends(sigmas: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        steps = SAMPLERS[name](DATA, x, sigmas, lambda *_: torch.zeros_like(x))
        return [x, *(step.x for step in steps)]

    whole = ends(sigmas, doubles([0.3, -1.0]))
    (_, alone) = ends(sigmas[2:], whole[2])
    torch.testing.assert_close(whole[3], alone)
    shorter = [*sigmas[:3].tolist(), sigmas[2].item() * math.exp(-0.9 * UNEVEN * h)]
    past = ends(doubles(*shorter), doubles([0.3, -1.0]))
    (_, alone) = ends(doubles(*shorter[2:]), past[2])
    assert (past[3] - alone).abs().max() > 1e-6
