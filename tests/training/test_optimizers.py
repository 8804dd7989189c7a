"""The updates: Muon's against the singular value decomposition, AdamW's against torch's own."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from undust.errors import UndustError
from undust.training.configs import OptimizerConfig
from undust.training.muon import Muon, orthogonalised
from undust.training.optimizers import Optimizers

SHAPES = {
    "conv_in.weight": (8, 4, 3, 3),
    "block.conv1.weight": (12, 8, 3, 3),
    "block.linear.weight": (40, 12),
    "block.linear.bias": (40,),
    "embeddings.token_embedding.weight": (9, 12),
    "time_embedding.linear_1.weight": (16, 12),
    "pool.positional_embedding": (1, 12),
    "conv_out.weight": (4, 8, 3, 3),
    "conv_out.bias": (4,),
}
HIDDEN = {"block.conv1.weight", "block.linear.weight", "time_embedding.linear_1.weight"}
RATE = 0.01


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    made = {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    for value in made.values():
        value.grad = torch.randn_like(value)
    return made


def test_muon_moves_by_an_orthogonal_matrix():
    """The first update of a matrix points where U Vᵀ of its gradient does, and has AdamW's size."""
    moved = parameters()
    before = {name: value.detach().clone() for name, value in moved.items()}
    settings = OptimizerConfig(kind="muon", learning_rate=RATE)
    Optimizers(moved, settings).step(RATE)
    for name in HIDDEN:
        gradient = moved[name].grad
        assert gradient is not None
        update = (before[name] - moved[name].detach()).flatten(1) / RATE
        u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
        along = torch.linalg.svdvals(update) / (0.2 * math.sqrt(max(update.shape)))
        # Five Newton-Schulz steps bring singular values to about 1, not onto it.
        assert along.min() > 0.5 and along.max() < 1.3
        cosine = nn.functional.cosine_similarity(update.flatten(), (u @ v).flatten(), dim=0)
        assert cosine > 0.95


def test_there_may_be_matrices_alone():
    """As in a LoRA."""
    moved = {name: value for name, value in parameters().items() if name in HIDDEN}
    optimizers = Optimizers(moved, OptimizerConfig(kind="muon", learning_rate=RATE))
    before = {name: value.detach().clone() for name, value in moved.items()}
    optimizers.load(optimizers.moments(), 0)
    optimizers.step(RATE)
    assert all(not torch.equal(value, before[name]) for name, value in moved.items())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_rest_moves_as_torchs_adamw(kind: str):
    ours, theirs = parameters(), parameters()
    settings = OptimizerConfig.model_validate(
        {"kind": kind, "learning_rate": 1, "betas": (0.8, 0.95), "weight_decay": 0.1}
    )
    optimizers = Optimizers(ours, settings)
    reference = torch.optim.AdamW(theirs.values(), lr=RATE, betas=(0.8, 0.95), weight_decay=0.1)
    for _ in range(3):
        optimizers.step(RATE)
        reference.step()
    for name in SHAPES:
        same = torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
        assert same == (kind == "adamw" or name not in HIDDEN), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_all_that_is_needed_to_go_on(kind: str):
    whole, parts = parameters(), parameters()
    settings = OptimizerConfig.model_validate({"kind": kind, "learning_rate": 1})
    one = Optimizers(whole, settings)
    for _ in range(4):
        one.step(RATE)
    first = Optimizers(parts, settings)
    for _ in range(2):
        first.step(RATE)
    second = Optimizers(parts, settings)
    second.load(first.moments(), 2)
    for _ in range(2):
        second.step(RATE)
    for name in SHAPES:
        assert torch.equal(whole[name], parts[name]), name


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16), (16, 20)])
def test_singular_vectors_stay_and_singular_values_come_to_one(shape: tuple[int, int]):
    """In float64 the iteration is the odd polynomial, applied to each singular value by itself."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = u @ values.diag() @ v
    torch.testing.assert_close(orthogonalised(matrix, torch.float64), expected)
    single = orthogonalised(matrix.float(), torch.float32)
    torch.testing.assert_close(single, expected.float(), rtol=1e-3, atol=1e-4)
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_batch_of_matrices_is_each_by_itself():
    batch = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(0))
    for matrices in (batch, batch[:, :, :20], batch.mT):
        each = torch.stack([orthogonalised(one, torch.float32) for one in matrices])
        torch.testing.assert_close(orthogonalised(matrices, torch.float32), each)


def test_in_bfloat16_singular_values_of_any_spectrum_stay_bounded():
    """A wide matrix, whose singular values span four decades (without a restart one comes to 6)."""
    chance = torch.Generator().manual_seed(0)
    left, right = (torch.randn(200, n, generator=chance) for n in (200, 2000))
    matrix = left @ torch.logspace(0, -4, 200).diag() @ right
    values = torch.linalg.svdvals(orthogonalised(matrix, torch.bfloat16).float())
    assert values.max() < 1.3
    exact = orthogonalised(matrix.double(), torch.float64)
    found = orthogonalised(matrix, torch.bfloat16).double()
    assert nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("shape", [(24, 40), (24, 100)])
def test_muon_in_bfloat16_is_torchs(shape: tuple[int, int]):
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], 0.1, torch.bfloat16)
    peer = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    mine.param_groups[0]["lr"] = RATE
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        peer.step()
    moved = (start - theirs).norm()
    assert (ours - theirs).norm() < 2e-2 * moved  # bfloat16 has 8 bits


def test_in_8_bits_moments_go_on_to_the_bit():
    """A matrix of 4,096 elements has quantised moments; the bias has not."""
    if find_spec("torchao") is None:
        with pytest.raises(UndustError, match=r"needs torchao: pip install 'undust\[torchao\]'"):
            Optimizers(parameters(), OptimizerConfig(kind="adamw-8bit", learning_rate=1))
        return

    def made() -> dict[str, nn.Parameter]:
        torch.manual_seed(0)
        return {name: nn.Parameter(torch.randn(n)) for name, n in (("w", 4096), ("b", 8))}

    settings = OptimizerConfig(kind="adamw-8bit", learning_rate=1, weight_decay=0.1)

    def steps(of: dict[str, nn.Parameter], optimizers: Optimizers, numbers: range) -> None:
        for number in numbers:
            chance = torch.Generator().manual_seed(number)
            for value in of.values():
                value.grad = torch.randn(value.shape, generator=chance)
            optimizers.step(RATE)

    whole, parts, exact = made(), made(), made()
    steps(whole, Optimizers(whole, settings), range(4))
    first = Optimizers(parts, settings)
    steps(parts, first, range(2))
    moments = {name: value.clone() for name, value in first.moments().items()}
    assert {"w.exp_avg.codes", "w.exp_avg_sq.scale", "b.exp_avg"} <= moments.keys()
    second = Optimizers(parts, settings)
    second.load(moments, 2)
    steps(parts, second, range(2, 4))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps(exact, Optimizers(exact, settings.model_copy(update={"kind": "adamw"})), range(4))
    for name, value in exact.items():
        moved = (value - made()[name]).norm()
        assert (whole[name] - value).norm() < 0.1 * moved, name
