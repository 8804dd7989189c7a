"""Tables of λ: the published vectors, the objective on a grid, and what does not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undust.diffusion import lambda_tables
from undust.diffusion.lambda_tables import B, K, LambdaTable, distances_along, table_of
from undust.diffusion.process import EDM
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError


def sigmas(steps: int) -> Tensor:
    """Those of NVS-Solver's files: Karras, ρ = 7, from 700 to 0.002, and a final 0."""
    return SCHEDULES["karras"](EDM(0.002, 700.0), steps)


def by_hand(sigma: float, distance: float, v1: float, v2: float, v3: float) -> float:
    """The published w of one frame, from the formula in one line for each root."""
    q = v3 * distance - v2 * sigma / 700
    for v in (v1, -v1):
        under = (2 * K * v + K * q) ** 2 - 4 * K * v * (K * v + q * B)
        roots = [(-(2 * v + K * q) + s * math.sqrt(max(under, 0))) / (2 * K * v) for s in (1, -1)]
        for root in roots:
            if under >= 0 and (root > 1 if v > 0 else 0 < root <= 1):
                return root / (1 + root)
    return math.nan


def test_the_published_table():
    """Triple, count and weights of NVS-Solver's own code for 25 levels and 25 frames."""
    table = lambda_tables.search(sigmas(25), 25)
    assert table.triple == (0.001, 1000, 10)
    assert table.count == 409
    assert table.weights.shape == (25, 25)
    assert torch.equal(table.weights[:, 0], torch.ones(25).double())
    assert bool((table.weights[0] > 0.999998).all())
    last = table.weights[-1, [1, 12, 24]].tolist()
    assert last == pytest.approx([0.0037845, 0.00031274, 0.00015631], rel=2e-5)


@pytest.mark.parametrize("steps", [25, 50, 100])
@pytest.mark.parametrize("frames", [2, 14, 25])
def test_every_weight_is_that_of_the_formula(steps: int, frames: int):
    levels = sigmas(steps)
    table = lambda_tables.search(levels, frames)
    assert table.triple is not None
    for row in range(0, steps, 7):
        for frame in range(1, frames):
            expected = by_hand(levels[row].item(), frame / (frames - 1), *table.triple)
            assert table.weights[row, frame].item() == pytest.approx(expected, rel=1e-9)


def test_no_other_triple_has_more_weights_above_a_half():
    """A plain loop over some triples, of which none may be better, and none before it as good."""
    table = lambda_tables.search(sigmas(50), 14)
    for v1 in (0.001, 0.004, 0.009):
        for v2 in (50, 400, 950, 1000):
            for v3 in (10, 20, 100):
                each = [by_hand(s, f / 13, v1, v2, v3) for s in sigmas(50)[:-1].tolist()
                        for f in range(1, 14)]  # fmt: skip
                count = 50 + sum(w > 0.5 for w in each)
                if not any(map(math.isnan, each)):
                    assert count <= table.count
                    assert count < table.count or (v1, v2, v3) >= table.triple


@pytest.mark.parametrize("views", [1, 2])
def test_derived_roots_minimise_the_objective(views: lambda_tables.Views):
    """On a grid of λ over the domain of the logarithm, λ > −B/K, there is none lower."""
    table = lambda_tables.search(sigmas(25), 25, views=views, derived=True)
    assert table.triple is not None
    v1, v2, v3 = table.triple
    ramp = torch.logspace(-7, 8, 3000, dtype=torch.float64)
    tried = torch.cat([torch.tensor([(1 - B) / K]).double(), -B / K + ramp])

    def objective(strength: Tensor, sigma: Tensor, distance: Tensor) -> Tensor:
        noise = v2 * sigma / 700 / (1 + strength)
        moved = v3 * distance * strength / (1 + strength)
        return noise + moved + v1 * (K * strength + B).log().abs()

    distances = distances_along(torch.arange(25)[:, None], views)
    for row, sigma in enumerate(sigmas(25)[:-1]):
        for frame in range(1, 25 - (views == 2)):
            best = objective(tried, sigma, distances[frame]).min()
            found = objective(table.lambdas[row, frame], sigma, distances[frame])
            assert found <= best + 1e-12


def test_the_published_form_is_lower_by_a_quarter():
    """2v for 2Kv moves each root by 1 − 1/K; B = K − 1 makes that the logarithm's beginning."""
    published, derived = (lambda_tables.search(sigmas(25), 25, derived=d) for d in (False, True))
    assert published.triple == derived.triple
    small = published.lambdas < 100  # where λ has the digits to subtract
    off = (derived.lambdas - published.lambdas)[small & (published.weights < 1)]
    torch.testing.assert_close(off, torch.full_like(off, 1 / K - 1), rtol=1e-9, atol=1e-9)
    assert pytest.approx(-B / K) == 1 / K - 1


def test_the_first_of_two_roots_and_none_outside_of_the_logarithm():
    """With b/k = −¼, λ² + (2 + q)·λ + 1 − q/4 = 0 for q = Q/v: 1.617 and 1.393 for q = −5.01.

    For q = −4.9 there is no real root with v, and with −v 0.0325 and a negative one, both below ¼.
    """
    slopes = torch.tensor([-5.01, -4.9], dtype=torch.float64) * 0.001
    larger = (3.01 + math.sqrt(3.01**2 - 4 * 2.2525)) / 2
    for derived, shift in ((True, 0.0), (False, 0.25)):
        found, none = lambda_tables._roots(0.001, slopes, derived).tolist()
        assert found == pytest.approx(larger - shift)
        assert math.isnan(none)


def test_weights_fall_with_distance_and_with_the_noise_level():
    table = lambda_tables.search(sigmas(25), 25)
    assert bool((table.weights.diff(dim=0) <= 0).all())
    assert bool((table.weights.diff(dim=1) <= 0).all())
    assert torch.equal(table.weights[1:] / (1 - table.weights[1:]), table.lambdas[1:])


def test_two_views():
    """The last frame is known too, and the table of an even path is symmetric."""
    table = lambda_tables.search(sigmas(25), 14, views=2)
    torch.testing.assert_close(table.weights, table.weights.flip(1), rtol=1e-12, atol=0)
    assert torch.equal(table.weights[:, [0, -1]], torch.ones(25, 2).double())
    assert table.triple is not None
    for frame, distance in enumerate((1, 2, 3, 4, 5, 6, 6, 5), 1):
        expected = by_hand(sigmas(25)[12].item(), distance / 6, *table.triple)
        assert table.weights[12, frame].item() == pytest.approx(expected, rel=1e-9)
    assert lambda_tables.search(sigmas(25), 3, views=2).weights.shape == (25, 3)


def test_given_distances_take_the_place_of_an_even_path():
    even = torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64)
    one, other = (lambda_tables.search(sigmas(25), 4, distances=d) for d in (None, even))
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-12, atol=0)
    swapped = lambda_tables.search(sigmas(25), 4, distances=even[[0, 3, 1, 2]])
    torch.testing.assert_close(swapped.weights[:, 1], one.weights[:, 3])
    two = lambda_tables.search(sigmas(25), 4, views=2, distances=even[[0, 3, 1, 0]])
    assert bool((two.weights[:, 1] <= two.weights[:, 2]).all())


def test_distances_between_cameras():
    """A square of side 2: the far corner is √8 from the first, the last one 2."""
    square = torch.tensor([[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]])
    expected = torch.tensor([0, 2, math.sqrt(8), 2]).double() / math.sqrt(8)
    torch.testing.assert_close(distances_along(square), expected)
    assert distances_along(square, 2).tolist() == [0, 1, 1, 0]
    with pytest.raises(UndustError, match="at least one has to be away from the known images"):
        distances_along(torch.zeros(4, 3))
    with pytest.raises(UndustError, match=r"finite numbers \[frames, 3\] are needed"):
        distances_along(torch.full((4, 3), torch.nan))


def test_with_and_without_the_final_zero_and_in_float32():
    one, two = (lambda_tables.search(each, 25) for each in (sigmas(25), sigmas(25)[:-1]))
    assert torch.equal(one.weights, two.weights)
    rounded = lambda_tables.search(sigmas(25).float(), 25)  # as the published files are
    assert (rounded.triple, rounded.count) == (one.triple, one.count)
    torch.testing.assert_close(rounded.weights, one.weights, rtol=1e-4, atol=1e-12)


def test_chunks_are_of_no_account(monkeypatch: pytest.MonkeyPatch):
    whole = lambda_tables.search(sigmas(25), 25)
    monkeypatch.setattr(lambda_tables, "CHUNK", 7 * 625)
    parts = lambda_tables.search(sigmas(25), 25)
    assert whole.triple == parts.triple
    assert torch.equal(whole.weights, parts.weights)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([3.0, 4.0, 0.0], "number 1 is 4 after 3; each has to be lower"),
        ([3.0, 3.0], "number 1 is 3 after 3"),
        ([3.0, math.nan, 1.0], "number 1 is nan; noise levels are finite"),
        ([math.inf, 1.0], "number 0 is inf"),
        ([3.0, 0.0, 0.0], "number 1 is 0"),
        ([3.0, -1.0], "number 1 is -1"),
        ([0.0], "number 0 is 0"),
        ([], "a list of noise levels is needed"),
        ([[3.0, 1.0]], "a list of noise levels is needed"),
    ],
)
def test_other_lists_of_sigma(levels: list[float], said: str):
    with pytest.raises(UndustError, match=said):
        lambda_tables.search(torch.tensor(levels), 25)


def test_other_numbers_of_frames_and_distances():
    for frames, views in ((1, 1), (0, 1), (-3, 1), (2, 2)):
        with pytest.raises(UndustError, match=f"num_frames: {frames} is too few"):
            lambda_tables.search(sigmas(25), frames, views=views)
    for wrong in (
        torch.ones(3),
        torch.full((4,), 1.1),
        torch.full((4,), torch.nan),
        torch.ones(4, 1),
    ):
        with pytest.raises(UndustError, match="distances: 4 numbers in 0 … 1 are needed"):
            lambda_tables.search(sigmas(25), 4, distances=wrong)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((24, 14), r"24 × 14 weights do not fit 25 noise levels .* × 14 frames; .*rows\) is off$"),
        ((25, 25), r"the number of frames \(columns\) is off$"),
        ((14, 25), r"noise levels \(rows\) and that of frames \(columns\) is off$"),
        ((26, 14), r"len\(sigmas\) without the final 0"),
        ((625,), r"625 weights do not fit .* = 350; they would fit 25 frames$"),
        ((364,), r"they would fit 26 noise levels$"),
        ((349,), r"× 14 frames = 350$"),
        ((0,), r"× 14 frames = 350$"),
        ((25, 14, 1), r"25 × 14 × 1 weights do not fit"),
    ],
)
def test_tables_that_do_not_fit(shape: tuple[int, ...], said: str):
    """Seed 001: "if one of the lengths does not match, there is a reshape error"."""
    with pytest.raises(UndustError, match=said):
        table_of(torch.ones(shape), sigmas(25), 14)


def test_rows_one_after_another_are_a_table():
    weights = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert torch.equal(table_of(weights, sigmas(25), 2).weights, weights.reshape(25, 2))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_other_weights(value: float):
    weights = torch.ones(25, 14)
    weights[3, 2] = value
    with pytest.raises(UndustError, match=f"noise level 3, frame 2 is {value:g}; w = λ/"):
        table_of(weights, sigmas(25), 14)
    with pytest.raises(UndustError, match="do not fit 24 noise levels"):
        LambdaTable(torch.ones(25, 14), sigmas(24)[:-1])


def test_the_row_of_a_level():
    table = lambda_tables.search(sigmas(25), 3)
    for place, sigma in enumerate(sigmas(25)[:-1].float().tolist()):
        assert torch.equal(table.row(sigma), table.weights[place])
    for sigma in (701.0, 0.0, 300.0, math.nan, 0.0021):
        with pytest.raises(UndustError, match="is not one of its 25 noise levels"):
            table.row(sigma)
