"""Every sampler that k-diffusion has as well against it, with the same noise.

Its noise samplers are called with (σ, σ_next) as ours are. test_k_diffusion_faults.py shows where
it is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from peers import k_diffusion_sampling
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS

NOISE = normal(1, (0, 0, 0), (2, 4, 5, 5))

# Ours, with options, and theirs.
PEERS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("euler", {}, "sample_euler", {}),
    ("dpm-solver-1", {}, "sample_euler", {}),
    ("heun", {}, "sample_heun", {}),
    ("dpm2", {}, "sample_dpm_2", {}),
    ("dpm-solver-2", {}, "sample_dpm_2", {}),
    ("dpmpp-2m", {}, "sample_dpmpp_2m", {}),
    *(("lms", {"order": n}, "sample_lms", {"order": n}) for n in (1, 2, 3, 4)),
    *(
        (ours, {"eta": eta}, f"sample_{theirs}", {"eta": eta})
        for ours, theirs in [
            ("euler-ancestral", "euler_ancestral"),
            ("dpm2-ancestral", "dpm_2_ancestral"),
            ("dpmpp-2s-ancestral", "dpmpp_2s_ancestral"),
            ("dpmpp-sde", "dpmpp_sde"),
            ("dpmpp-2m-sde", "dpmpp_2m_sde"),
        ]
        for eta in (0.0, 0.5, 1.0)
    ),
    ("dpmpp-2m-sde", {"solver": "heun"}, "sample_dpmpp_2m_sde", {"solver_type": "heun"}),
]


def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    """Stands for a network: smooth, and of unit size at every level."""
    level = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh(1.3 * x.roll(1, 1) / (1 + level**2).sqrt() + level.log() / 3)


def karras(steps: int) -> Tensor:
    ramp = torch.linspace(14.6 ** (1 / 7), 0.03 ** (1 / 7), steps, dtype=torch.float64)
    return torch.cat([ramp**7, ramp.new_zeros(1)])


def even(steps: int) -> Tensor:
    return 14.6 * (0.03 / 14.6) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def levels(name: str, steps: int) -> Tensor:
    """To 0, but for lms, which does that step otherwise: test_k_diffusion_faults.py."""
    return karras(steps + 1)[:-1] if name == "lms" else karras(steps)


def drawing(dtype: torch.dtype) -> Callable[[Any, Any], Tensor]:
    generator = torch.Generator().manual_seed(7)
    return lambda *_: torch.randn(NOISE.shape, generator=generator).to(dtype)


def ours(name: str, sigmas: Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    start = (NOISE * sigmas[0]).to(dtype)
    *_, last = SAMPLERS[name](denoise, start, sigmas, drawing(dtype), **options)
    return last.x


def theirs(name: str, sigmas: Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    sample = getattr(k_diffusion_sampling(), name)
    if "noise_sampler" in inspect.signature(sample).parameters:
        options["noise_sampler"] = drawing(dtype)
    return sample(denoise, (NOISE * sigmas[0]).to(dtype), sigmas, disable=True, **options)


def off(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize(("name", "options", "peer", "peer_options"), PEERS)
def test_agrees(name: str, options: Any, peer: str, peer_options: Any):
    """In few steps float64 alone can tell: theirs loses digits in x + (x − x0)/σ·(σ' − σ).

    Theirs fails with a single step of dpmpp-2m-sde: test_k_diffusion_faults.py.
    """
    for dtype, counts, bound in [
        (torch.float64, (1, 2, 3, 5), 1e-11),
        (torch.float32, (10, 30), 1e-5),
    ]:
        for steps in counts[name == "dpmpp-2m-sde" :]:
            case = levels(name, steps), dtype
            worst = off(ours(name, *case, **options), theirs(peer, *case, **peer_options))
            assert worst < bound, (dtype, steps)


DEFAULTS = [case for case in PEERS if set(case[1].values()) <= {1.0, 4}]


@pytest.mark.parametrize(("name", "options", "peer", "peer_options"), DEFAULTS)
def test_agrees_over_many_steps(name: str, options: Any, peer: str, peer_options: Any):
    for dtype, bound in [(torch.float64, 1e-9), (torch.float32, 1e-5)]:
        case = levels(name, 200), dtype
        assert off(ours(name, *case, **options), theirs(peer, *case, **peer_options)) < bound


@pytest.mark.parametrize("calls", [1, 2, 4, 5, 6, 7, 30, 1000])
def test_dpm_fast_agrees(calls: int):
    sigmas = even(calls)
    sample = k_diffusion_sampling().sample_dpm_fast
    end = sample(denoise, NOISE * 14.6, 0.03, 14.6, calls, disable=True)
    assert off(ours("dpm-fast", sigmas), end) < 1e-5


@pytest.mark.parametrize("pid", [(0.0, 1.0, 0.0), (0.2, 0.7, 0.05)])
def test_dpm_adaptive_agrees(pid: tuple[float, float, float]):
    """One picture at a time: theirs lets the pictures of a batch share their steps."""
    sample = k_diffusion_sampling().sample_dpm_adaptive
    coefficients = dict(zip(("pcoeff", "icoeff", "dcoeff"), pid, strict=True))
    start = NOISE * 14.6
    *_, last = SAMPLERS["dpm-adaptive"](denoise, start, even(1), torch.zeros_like, pid=pid)
    for k in range(len(start)):
        end = sample(denoise, start[k : k + 1], 0.03, 14.6, disable=True, **coefficients)
        assert off(last.x[k : k + 1], end) < 1e-5


@pytest.mark.parametrize(("s_churn", "s_noise"), [(0.0, 1.0), (5.0, 1.0), (40.0, 1.003)])
def test_edm_agrees(s_churn: float, s_noise: float, monkeypatch: pytest.MonkeyPatch):
    """Theirs draws by itself, in every step; s_tmin keeps it from churning the one to 0."""
    options = {"s_churn": s_churn, "s_noise": s_noise, "s_tmin": 0.05, "s_tmax": 10.0}
    sigmas = karras(20)
    draws = [normal(9, (k, 0, 0), NOISE.shape) for k in range(20)]
    all_draws = iter(draws)
    used = iter([draw for draw, sigma in zip(draws, sigmas, strict=False) if sigma <= 10])
    start = NOISE * sigmas[0].float()
    sample = k_diffusion_sampling().sample_heun
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn_like", lambda _: next(all_draws))
        end = sample(denoise, start, sigmas, disable=True, **options)
    *_, last = SAMPLERS["edm"](denoise, start, sigmas, lambda *_: next(used), **options)
    assert off(last.x, end) < 1e-5
