"""The agreement of edges with those that were wanted."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.evaluation.agreement import edge_f_measure

ROWS, COLUMNS = 5, 6


def lines(*columns: int) -> torch.Tensor:
    """Upright lines at columns of a picture [1, 1, 8, 16]."""
    edges = torch.zeros(1, 1, 8, 16)
    edges[..., list(columns)] = 1
    return edges


def test_lines_beside_one_another():
    """Exact; one pixel apart; three apart; half of them; twice as many; none."""
    wanted = lines(3, 9)
    for found, expected in (
        (lines(3, 9), 1),
        (lines(4, 8), 1),
        (lines(6, 12), 0),
        (lines(3), 2 / 3),
        (lines(0, 3, 9, 14), 2 / 3),
        (lines(), 0),
    ):
        torch.testing.assert_close(edge_f_measure(found, wanted).item(), float(expected))
    assert edge_f_measure(lines(), lines()).item() == 1


EDGES = st.lists(st.booleans(), min_size=ROWS * COLUMNS, max_size=ROWS * COLUMNS)


@given(EDGES, EDGES, st.integers(0, 2))
def test_it_is_the_mean_of_precision_and_recall_by_distances(
    found: list[bool], wanted: list[bool], tolerance: int
):
    places = [
        [divmod(place, COLUMNS) for place, edge in enumerate(edges) if edge]
        for edges in (found, wanted)
    ]

    def share(own: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [any(max(abs(y - v), abs(x - u)) <= tolerance for v, u in others) for y, x in own]
        return sum(near) / len(near) if near else 0.0

    precision, recall = share(*places), share(*reversed(places))
    both = precision + recall
    expected = 2 * precision * recall / both if both else float(not any(places))
    tensors = [
        torch.tensor(edges, dtype=torch.float32).reshape(1, 1, ROWS, COLUMNS)
        for edges in (found, wanted)
    ]
    torch.testing.assert_close(edge_f_measure(*tensors, tolerance).item(), expected)
