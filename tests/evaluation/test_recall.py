"""Recognising pictures: the known answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from undust.evaluation.pictures import PictureSet
from undust.evaluation.recall import SIDE, ReferenceSet, features
from undust.pictures import from_image

SIZE = (32, 32)


def read(paths: list[Path]) -> Tensor:
    return torch.stack([from_image(Image.open(path), SIZE) for path in paths]) / 127.5 - 1


def gallery_of(paths: list[Path]) -> ReferenceSet:
    return ReferenceSet(PictureSet.of_files(paths, SIZE))


def share(ranks: list[int], among: int) -> float:
    return sum(rank < among for rank in ranks) / len(ranks)


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


def test_the_pictures_themselves_are_all_found(drawn: list[Path]):
    assert gallery_of(drawn).ranks(read(drawn), [*range(60)]) == [0] * len(drawn)


def test_another_picture_is_never_taken_for_the_right_one(drawn: list[Path]):
    others = [*range(1, 60), 0]
    assert 0 not in gallery_of(drawn).ranks(read(drawn), others)


def test_guessing_finds_as_many_as_chance_says(drawn: list[Path]):
    """Pictures that have nothing to do with what was asked for: ranks are uniform over 60."""
    gallery = gallery_of(drawn[:30])
    ranks = [
        rank
        for turn in range(30)
        for rank in gallery.ranks(read(drawn[30:]), [*range(turn, 30), *range(turn)])
    ]
    assert share(ranks, 1) == pytest.approx(1 / 30)  # each of the 30 is asked for once
    assert share(ranks, 5) == pytest.approx(5 / 30)


def test_a_little_dust_is_forgiven_and_much_is_not(drawn: list[Path]):
    gallery, x = gallery_of(drawn), read(drawn)
    places = [*range(60)]
    found = [share(gallery.ranks(x + s * noise(x), places), 1) for s in (0.3, 10, 1000)]
    assert found[0] == 1
    assert 1 > found[1] > found[2]
    assert found[2] < 0.1


def test_a_small_shift_is_forgiven(drawn: list[Path]):
    shifted = read(drawn).roll((1, 1), (-2, -1))
    assert share(gallery_of(drawn).ranks(shifted, [*range(60)]), 1) == 1


def test_equal_pictures_are_equally_right(drawn: list[Path], tmp_path: Path):
    """Three flags that look the same: whichever was asked for is found, and counts as one."""
    twins = [tmp_path / f"twin{k}.{kind}" for k, kind in enumerate(("png", "bmp"))]
    for twin in twins:
        Image.open(drawn[0]).save(twin)
    gallery = gallery_of([*drawn, *twins])
    assert len(gallery) == len(drawn)
    assert gallery.number[60:] == [gallery.number[0]] * 2
    painted = read([drawn[0]] * 3)
    assert gallery.ranks(painted, [0, 60, 61]) == [0, 0, 0]
    beside = read([drawn[1]]) * 0.6 + read([drawn[0]]) * 0.4
    assert gallery.ranks(beside, [1]) == [0]
    assert gallery.ranks(beside, [60]) == [1]


def test_transparent_pictures_lie_on_white(tmp_path: Path):
    clear, white = tmp_path / "clear.png", tmp_path / "white.png"
    Image.new("RGBA", SIZE, (255, 0, 0, 0)).save(clear)
    Image.new("RGB", SIZE, "white").save(white)
    assert len(gallery_of([clear, white])) == 1


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (64, 32)])
def test_pictures_of_any_size_are_compared_at_one(size: tuple[int, int]):
    width, height = size
    assert features(torch.zeros(2, 3, height, width)).shape == (2, 3 * SIDE * SIDE)


def test_an_even_picture_stays_even():
    """Nothing darkens or lightens at the border."""
    colour = torch.tensor([-0.5, 0.0, 1.0])
    even = colour[None, :, None, None].expand(1, 3, 64, 64)
    expected = colour.repeat_interleave(SIDE * SIDE)
    torch.testing.assert_close(features(even)[0], expected)
