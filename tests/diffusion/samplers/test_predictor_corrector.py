from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from convergence import falling
from orders import doubles, flow_order, weak_order
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError

START = torch.linspace(-3, 3, 6, dtype=torch.float64)[:, None]


def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(x - sigma[:, None] / 3)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("order", "measured"), [(1, 2), (2, 3), (3, 3)])
def test_order_of_unipc(order: int, variant: str, measured: int):
    """One more than its name (their theorem 3.1), as far as the first step allows."""
    slope = flow_order("unipc", (64, 128, 256), order=order, variant=variant)
    assert slope == pytest.approx(measured, abs=0.15)


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (3, 4)])
def test_order_of_sa_solver_without_noise(predictor: int, corrector: int):
    """That of the corrector, as far as the first step allows."""
    slope = flow_order(
        "sa-solver", (64, 128, 256), tau=0.0, predictor=predictor, corrector=corrector
    )
    assert slope == pytest.approx(min(corrector, 3), abs=0.15)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_weak_order_of_sa_solver(tau: float):
    order = SAMPLERS["sa-solver"].order
    assert weak_order("sa-solver", (64, 128, 256), tau=tau) == pytest.approx(order, abs=0.15)


def test_without_noise_they_are_one_method():
    sigmas = falling(10, 0, 9)
    for order in (1, 2, 3):
        unipc = SAMPLERS["unipc"](
            smooth, START, sigmas, torch.zeros_like, order=order, variant="bh1"
        )
        adams = SAMPLERS["sa-solver"](
            smooth, START, sigmas, lambda *_: 0, tau=0.0, predictor=order, corrector=order + 1
        )
        for one, other in zip(unipc, adams, strict=True):
            assert torch.equal(one.x, other.x)


def test_one_call_a_step():
    """At every level once, with the picture that the predictor reached; none for the last step."""
    asked: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma[0].item())
        return smooth(x, sigma)

    for bottom in (0.0, 0.1):
        asked.clear()
        sigmas = falling(10, bottom, 7)
        list(SAMPLERS["unipc"](denoise, START, sigmas, torch.zeros_like))
        assert asked == sigmas[:-1].tolist()


def test_errors_name_what_is_right():
    def run(name: str, **options: object) -> None:
        SAMPLERS[name](smooth, START, doubles(1, 0), torch.zeros_like, **options)

    with pytest.raises(UndustError, match=r"^order: 4 is outside 1 … 3"):
        run("unipc", order=4)
    with pytest.raises(UndustError, match=r"^variant: 'bh3' is neither 'bh1' nor 'bh2'"):
        run("unipc", variant="bh3")
    for tau in (-0.1, math.nan, math.inf):
        with pytest.raises(UndustError, match=r"^tau: "):
            run("sa-solver", tau=tau)
    with pytest.raises(UndustError, match=r"^predictor: 0 is outside 1 … 3"):
        run("sa-solver", predictor=0)
    with pytest.raises(UndustError, match=r"^corrector: 5 is outside 2 … 4"):
        run("sa-solver", corrector=5)
