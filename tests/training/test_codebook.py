"""The codebook's moving averages and revived codes, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from undust.networks.vq import Codebook
from undust.training.codebook import CodebookConfig, CodebookTraining, collapsed
from undust.training.data import Batch

BATCH = Batch(seed=3, step=5, sample=(0, 1), epoch=(0, 0), index=(0, 1))


def training(size: int = 8, **fields: object) -> tuple[CodebookTraining, Codebook]:
    torch.manual_seed(0)
    codebook = Codebook(size, 3)
    return CodebookTraining(CodebookConfig.model_validate(fields), codebook), codebook


def latents(side: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_codes_are_the_moving_average_of_their_latents():
    """van den Oord et al. 2017, equations 6 to 8, in float64."""
    ours, codebook = training(update="ema", decay=0.8, revive_after=0)
    weights, sums = np.ones(8), codebook.embedding.weight.double().numpy()
    for seed in range(20):
        z = latents(seed=seed)
        index = codebook.nearest(z)
        ours.update(z, index)
        rows, chosen = z.double().movedim(1, -1).reshape(-1, 3).numpy(), index.flatten().numpy()
        count = np.bincount(chosen, minlength=8)
        added = np.stack([rows[chosen == code].sum(0) for code in range(8)])
        weights, sums = 0.8 * weights + 0.2 * count, 0.8 * sums + 0.2 * added
        smooth = (weights + 1e-5) / (weights.sum() + 8e-5) * weights.sum()
        expected = sums / smooth[:, None]
        np.testing.assert_allclose(codebook.embedding.weight.numpy(), expected, rtol=2e-5)
    assert not [*codebook.parameters()]  # no optimizer moves them
    assert list(codebook.state_dict()) == ["embedding.weight"]


def test_codes_by_gradient_are_left_to_the_optimizer():
    ours, codebook = training(revive_after=0)
    before = codebook.embedding.weight.detach().clone()
    ours.revive(latents(), BATCH)
    ours.update(latents(), codebook.nearest(latents()))
    assert torch.equal(codebook.embedding.weight, before)
    assert [*codebook.parameters()]
    assert set(ours.state_dict()) == {"uses", "idle"}


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_move_to_latents_of_the_batch(update: str):
    """At the start all are dead; later those that were not used for `revive_after` steps."""
    ours, codebook = training(update=update, revive_after=2, decay=0.9)
    z = latents()
    rows = {tuple(row) for row in z.movedim(1, -1).reshape(-1, 3).tolist()}
    ours.revive(z, BATCH)
    first = [tuple(code) for code in codebook.embedding.weight.tolist()]
    assert set(first) <= rows
    assert len(set(first)) == 8  # drawn without replacement
    near = codebook.embedding.weight[:1, :, None, None].detach().expand(2, 3, 4, 4)
    for _ in range(2):
        ours.update(near, torch.zeros(2, 4, 4, dtype=torch.long))
        before = codebook.embedding.weight.detach().clone()
        ours.revive(latents(seed=9), BATCH)
    moved = (codebook.embedding.weight != before).any(1)
    assert moved.tolist() == [False] + [True] * 7
    again, other = training(update=update, revive_after=2)
    again.revive(z, BATCH)
    assert [tuple(code) for code in other.embedding.weight.tolist()] == first  # no chance
    again.revive(z, BATCH)  # none is dead now
    assert [tuple(code) for code in other.embedding.weight.tolist()] == first


def test_more_dead_codes_than_latents_take_several_batches():
    ours, codebook = training(size=50, revive_after=1)
    for left in (18, 0):
        ours.revive(latents(), BATCH)
        assert (codebook.embedding.weight.norm(dim=1) < 0.04).sum() == left


def test_use_and_perplexity():
    ours, _ = training(decay=0.5, revive_after=0)
    index = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).view(2, 2, 2)
    for _ in range(60):
        ours.update(latents(side=2), index)
    figures = ours.figures()
    assert figures["codes_in_use"] == 0.5
    assert figures["perplexity"].item() == pytest.approx(4)
    for _ in range(3):
        ours.update(latents(side=2), torch.zeros_like(index))
    shares = np.array([8 * 7 / 8 + 2 / 8, *[2 / 8] * 3]) / 8
    found = ours.figures()["perplexity"].item()
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_collapse_in_one_line():
    assert not collapsed(0.1)
    assert collapsed(0.02).startswith("the codebook has collapsed: 2.0% of its codes are in use")
